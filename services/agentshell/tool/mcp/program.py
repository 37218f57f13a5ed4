"""A server that is a program of the operator's: a process that speaks on its standard streams, one message per line.

The SDK can start one too, but passes it variables of ours, and lets a line be of any size.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.shared.message import SessionMessage

MAX_LINE_BYTES: Final = 4 * 1024 * 1024
_GRACE_SECONDS: Final = 0.5


@asynccontextmanager
async def speak(
    command: Sequence[str], environment: Mapping[str, str], ended: Callable[[], None]
) -> AsyncGenerator[tuple[Any, Any]]:
    """Yields the streams from and to a new process, for the SDK; the process and its session end with the block.

    `ended` is called when its output ends, or has a line that is too long. Raises OSError.
    """
    import anyio

    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True, limit=MAX_LINE_BYTES
    )
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise ValueError("a process is started with pipes")
    try:
        to_us, said = anyio.create_memory_object_stream[Any](0)
        asked, to_it = anyio.create_memory_object_stream[Any](0)
        async with said, asked, anyio.create_task_group() as tasks:
            tasks.start_soon(_read, stdout, to_us, ended)
            tasks.start_soon(_write, to_it, stdin)
            yield said, asked
            tasks.cancel_scope.cancel()
    finally:
        await asyncio.shield(_end(process, stdin, stdout))


async def _read(
    stdout: StreamReader, to_us: MemoryObjectSendStream[SessionMessage | Exception], ended: Callable[[], None]
) -> None:
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp.types import jsonrpc_message_adapter

    async with to_us:
        with suppress(ValueError, ConnectionError, anyio.BrokenResourceError):  # ValueError: a line that is too long.
            while line := await stdout.readline():
                try:
                    message: SessionMessage | Exception = SessionMessage(jsonrpc_message_adapter.validate_json(line))
                except ValueError as error:
                    message = error
                await to_us.send(message)
        ended()


async def _write(to_it: MemoryObjectReceiveStream[SessionMessage], stdin: StreamWriter) -> None:
    async with to_it:
        with suppress(ConnectionError):  # The reader finds that out too.
            async for message in to_it:
                stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await stdin.drain()


async def _end(process: Process, stdin: StreamWriter, stdout: StreamReader) -> None:
    """Gives the process a moment to end by itself, then kills it and its whole session."""
    stdin.close()
    rest = asyncio.create_task(_drop(stdout))  # `wait` does not return until everything is read.
    ended = asyncio.create_task(process.wait())
    await asyncio.wait([ended], timeout=_GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.wait([ended, rest], timeout=_GRACE_SECONDS)  # One that left the session may hold the pipe for ever.
    process._transport.close()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownMemberType] - nothing else closes pipes
    await asyncio.wait([ended, rest])


async def _drop(stdout: StreamReader) -> None:
    while await stdout.read(MAX_LINE_BYTES):
        pass
