"""A connection to a server: owned by one task, as the SDK requires, and used by many calls."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog

from agentshell.content import fill
from agentshell.mesh.errors import AgentShellError
from agentshell.schema import Schema
from kfm.error.v1 import error_pb2
from kfm.tool.v1.tool_service_pb2 import Tool

if TYPE_CHECKING:
    from mcp.client.client import Client
    from mcp.types import CallToolResult

_log = structlog.get_logger("agentshell.tool")

for _name in ("mcp", "client"):  # The SDK's loggers, which log what servers say.
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False

START_SECONDS: Final = 20.0
MAX_TOOLS: Final = 512
_MAX_PAGES: Final = 16
_LIST_SECONDS: Final = 60.0
_CANCEL_SECONDS: Final = 0.1
_DESCRIPTION_CHARACTERS: Final = 4096
_SHOWN_CHARACTERS: Final = 300

Streams: TypeAlias = AbstractAsyncContextManager[tuple[Any, Any]]
Connect: TypeAlias = Callable[[Callable[[], None]], Streams]
Tell: TypeAlias = Callable[[str], None]


class Connection:
    """A connection. `users` is how many calls use it; `is_over` says that the next call needs another one."""

    def __init__(self, server: str, connect: Connect) -> None:
        """`connect` opens the transport, and calls its argument when that breaks off."""
        self.users = 0
        self.is_over = False
        self._server = server
        self._connect = connect
        self._closing = asyncio.Event()
        self._client: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._tools: Mapping[str, Tool] = {}
        self._listed_at = -_LIST_SECONDS
        self._listing = asyncio.Lock()
        self._owner = asyncio.create_task(self._own(), name=f"mcp server {server}")

    async def close(self) -> None:
        """Ends the connection, and the process at its other end."""
        self.end()
        if not self._client.done():
            self._owner.cancel()
        await asyncio.wait([self._owner])

    def on_close(self, done: Callable[[Connection], None]) -> None:
        """Calls `done` once nothing of the connection is left."""
        self._owner.add_done_callback(lambda _owner: done(self))

    def end(self) -> None:
        """Makes the connection end now."""
        self.is_over = True
        self._closing.set()

    def retire(self) -> None:
        """Makes the connection end once nobody uses it: its server may no longer respond."""
        self.is_over = True

    async def started(self) -> None:
        """Waits until the connection is open, at most 20 seconds. Raises TOOL_SERVER_UNAVAILABLE."""
        await asyncio.shield(self._client)

    async def tools(self) -> Mapping[str, Tool]:
        """Returns the server's tools, by name, at most a minute old. Raises TOOL_SERVER_UNAVAILABLE."""
        async with self._listing:
            if time.monotonic() - self._listed_at >= _LIST_SECONDS:
                self._tools = await self._bounded(self._list())
                self._listed_at = time.monotonic()
        return self._tools

    async def call(self, name: str, arguments: Mapping[str, Any], tell: Tell) -> CallToolResult:
        """Returns what a tool answers; if cancelled, tells the server at once. Raises TOOL_SERVER_UNAVAILABLE."""

        async def told(_progress: float, _total: float | None, message: str | None) -> None:
            if message:
                tell(message[:_SHOWN_CHARACTERS])

        return await self._bounded(self._ask(name, arguments, told))

    async def _own(self) -> None:
        try:
            module: Any = await asyncio.to_thread(importlib.import_module, "mcp.client.client")  # It takes a second.
            connecting: Client = module.Client(self._connect(self.end), cache=None)
            async with asyncio.timeout(START_SECONDS) as starting, connecting as client:
                starting.reschedule(None)
                self._client.set_result(client)
                await self._closing.wait()
        except Exception as error:  # Whatever the SDK, a process or a host raises.
            self._fail(error)
        finally:
            self.end()
            self._fail(EOFError())

    def _fail(self, error: Exception) -> None:
        if not self._client.done():
            self._client.set_exception(unavailable(self._server, error))
            self._client.exception()  # Marks it as seen: there may be nobody to await it.
        elif not self._closing.is_set():
            _log.warning("mcp server lost", server=self._server, error=type(error).__name__)

    async def _bounded(self, work: Any) -> Any:
        """Does the work in a task, so that a cancelled caller need not wait for a server that does not respond."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            _, late = await asyncio.wait([task], timeout=_CANCEL_SECONDS)
            if late:
                self.end()
            raise
        try:
            return task.result()
        except AgentShellError:
            raise
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> AgentShellError:
        from mcp.shared.exceptions import MCPError
        from mcp.types import CONNECTION_CLOSED

        if isinstance(error, MCPError) and error.error.code != CONNECTION_CLOSED:
            return AgentShellError(
                error_pb2.ERROR_REASON_TOOL_FAILED,
                f"mcp server {self._server!r} refuses: {error.error.message[:_SHOWN_CHARACTERS]}",
                metadata={"server": self._server},
            )
        self.end()
        return unavailable(self._server, error)

    async def _ask(self, name: str, arguments: Mapping[str, Any], told: Any) -> CallToolResult:
        from mcp.types import CallToolRequest, CallToolRequestParams, CallToolResult
        from pydantic import TypeAdapter

        client = await asyncio.shield(self._client)
        request = CallToolRequest(params=CallToolRequestParams(name=name, arguments=dict(arguments)))
        # Not by `call_tool`, which checks the answer against the server's own patterns: matching may take any time.
        return await client.session.send_request(request, TypeAdapter(CallToolResult), progress_callback=told)

    async def _list(self) -> Mapping[str, Tool]:
        client = await asyncio.shield(self._client)
        found: dict[str, Tool] = {}
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools[: MAX_TOOLS - len(found)]:
                if made := _definition(self._server, tool):
                    found[made.name] = made
            cursor = page.next_cursor
            if cursor is None or len(found) >= MAX_TOOLS:
                break
        return found


def unavailable(server: str, error: BaseException) -> AgentShellError:
    """The error for a server that cannot be started or reached, or that broke off."""
    error = _first(error)
    if isinstance(error, AgentShellError):
        return error
    return AgentShellError(
        error_pb2.ERROR_REASON_TOOL_SERVER_UNAVAILABLE,
        f"mcp server {server!r} cannot be started or reached, or broke the connection: {type(error).__name__}; "
        f"an operator checks configuration key 'tool.mcp_servers.{server}'",
        metadata={"server": server},
        cause=error,
    )


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] - of any


def _definition(server: str, tool: Any) -> Tool | None:
    """Returns a tool as a server describes it; None if a schema is invalid."""
    made = Tool(name=tool.name, description=(tool.description or tool.title or tool.name)[:_DESCRIPTION_CHARACTERS])
    try:
        for said, into in ((tool.input_schema, made.input_schema), (tool.output_schema, made.output_schema)):
            if said is not None:
                Schema(said)
                fill(into, said)
    except ValueError as error:
        _log.warning("mcp tool left out", server=server, tool=tool.name[:64], problem=str(error)[:_SHOWN_CHARACTERS])
        return None
    return made


def texts_of(result: CallToolResult) -> Sequence[str]:
    """Returns the texts of an answer; for content that is not text, what it is."""
    said: list[str] = []
    for block in result.content:
        match block.type:
            case "text":
                said.append(block.text)
            case "resource":
                said.append(getattr(block.resource, "text", f"[{block.resource.uri}]"))
            case "resource_link":
                said.append(f"[{block.uri}]")
            case _:
                said.append(f"[{block.mime_type}, {len(block.data)} characters of base64]")
    return said
