"""A worker as the host sees it: a process that runs tools, one call at a time, and can be killed at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from agentshell.mesh.errors import AgentShellError
from agentshell.tool.sandbox import frame
from agentshell.tool.sandbox.frame import FrameError
from kfm.error.v1 import error_pb2

START_SECONDS: Final = 20.0
_SIGNALLED: Final = 128  # A wrapper's exit code is this plus the signal that ended its child.
_END: Final[Mapping[str, Any]] = {}  # The answer to what is refused: the worker ends the call.

Answer: TypeAlias = Callable[[str, str], Awaitable[Mapping[str, Any]]]
"""Answers what a tool asks of the host, by name and arguments as JSON: `{"value": JSON}`, or `{"error": text}`."""


class WorkerDied(Exception):  # noqa: N818 - it is what happened
    """The process ended during a call; `signal` is what ended it, 0 if it ended by itself."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name if number in set(signal.Signals) else "no signal"
        super().__init__(f"its process ended by {name}")
        self.signal = number


class Worker:
    """A locked process. `tenant_id` is the tenant whose calls it has served: it serves no other."""

    def __init__(self, process: Process, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader) -> None:
        self._process = process
        self._stdin, self._stdout = stdin, stdout
        self.tenant_id = ""
        self.call_count = 0
        self.spent = False
        """Whether it must not be used again."""

    @classmethod
    async def start(cls, command: Sequence[str]) -> Worker:
        """Starts a process, without this one's environment, and has it prove that it is locked.

        Raises SANDBOX_UNAVAILABLE.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, cwd="/", start_new_session=True
            )
        except OSError as error:
            raise unavailable(f"{command[0]} does not start: {error.strerror}") from error
        if process.stdin is None or process.stdout is None:
            raise ValueError("a process is started with pipes")
        worker = cls(process, process.stdin, process.stdout)
        try:
            async with asyncio.timeout(START_SECONDS):
                hello = await worker._receive()
        except (WorkerDied, FrameError, TimeoutError) as error:
            await worker.kill()
            raise unavailable(f"its process does not start: {error}") from error
        except asyncio.CancelledError:
            await worker.kill()
            raise
        if escapes := hello.get("escapes", ["say what it can do"]):
            await worker.kill()
            raise unavailable(f"its process could still {', '.join(map(str, escapes))}")
        return worker

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    async def call(self, request: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """Runs a call to its end, and answers what it asks of the host; if that raises, the call ends.

        Returns `{"said": JSON}` or `{"failed": kind, "message": text}`. Kills the process if its state is unknown, or
        the caller is cancelled. Raises WorkerDied, FrameError, and what `answer` raises.
        """
        self.call_count += 1
        self.spent = True
        try:
            self._send(request)
            refusal: AgentShellError | None = None
            while "host" in (said := await self._receive()):
                if refusal is not None:
                    raise refusal
                try:
                    self._send(await answer(str(said["host"]), str(said.get("arguments"))))
                except AgentShellError as error:
                    refusal = error
                    self._send(_END)
        except BaseException:
            await asyncio.shield(self.kill())
            raise
        self.spent = said.get("failed") not in (None, "ended")
        if refusal is not None:
            raise refusal
        return said

    async def kill(self) -> None:
        """Ends the process, whatever it does."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._stdin.close()
        await self._process.wait()

    def _send(self, value: Mapping[str, Any]) -> None:
        self._stdin.write(frame.encode(value))  # A frame or two: bounded by `frame.MAX_BYTES`.

    async def _receive(self) -> dict[str, Any]:
        try:
            header = await self._stdout.readexactly(frame.HEADER_BYTES)
            return frame.decode(await self._stdout.readexactly(frame.size(header)))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WorkerDied(_signal(await self._process.wait())) from None


def _signal(code: int) -> int:
    """Returns the signal that ended a process or the child that it wraps, from its exit code; 0: none."""
    return -code if code < 0 else max(0, code - _SIGNALLED)


def unavailable(problem: str) -> AgentShellError:
    """The error for a tier that does not hold."""
    return AgentShellError(
        error_pb2.ERROR_REASON_SANDBOX_UNAVAILABLE,
        f"no sandbox works on this machine, so no tool of a pack runs: {problem}",
        metadata={"kernel": os.uname().release},
    )
