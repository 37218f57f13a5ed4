"""A real HTTP/1.1 server that plays a model vendor: the base of each vendor's server.

It answers `reply` in the vendor's wire format, or does what `fault` says; it keeps every request, and notices when a
client closes the connection during an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Self

_WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call, with the JSON of its arguments in the pieces that are streamed."""

    call_id: str
    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the vendor's model says. `input_tokens` includes the tokens read from and written to the cache."""

    texts: tuple[str, ...] = ("Ready ", "to ", "serve.")
    reasoning: tuple[str, ...] = ()
    refusal: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    finish: str = "stop"
    input_tokens: int = 1200
    cached_tokens: int = 200
    cache_write_tokens: int = 0
    output_tokens: int = 300
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong.

    `cut_after`: after this many events the connection is closed; `is_cut_clean`: as if the answer ended there.
    `stall_after`: after this many, nothing more. `error_after`: after this many, an error within the stream.
    `status`: an error instead of an answer. `body`: these bytes instead of any answer. `content_type`: the answer's
    declared type, whatever it is. `is_dripped`: a stream is sent byte by byte. Errors have the vendor's `code`.
    """

    cut_after: int | None = None
    is_cut_clean: bool = False
    stall_after: int | None = None
    error_after: int | None = None
    status: int = 0
    code: str = ""
    message: str = "it failed"
    retry_after: str = ""
    body: bytes | None = None
    content_type: str = ""
    is_dripped: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass
class VendorServer(ABC):
    """Listens on loopback as an async context manager."""

    reply: Reply = field(default_factory=Reply)
    # Whether an error has a `Retry-After` header.
    has_retry_after: ClassVar[bool] = True
    # Replies to the next requests, one each; after them, `reply`.
    script: list[Reply] = field(default_factory=list[Reply])
    fault: Fault = field(default_factory=Fault)
    requests: list[Request] = field(default_factory=list[Request])
    connections: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self._hung_up = asyncio.Event()
        self._asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def events(self, request: Request) -> Sequence[bytes]:
        """Returns the frames of a streamed answer."""

    @abstractmethod
    def answer(self, request: Request) -> dict[str, Any]:
        """Returns an answer that is not streamed."""

    @abstractmethod
    def error(self, code: str, message: str) -> dict[str, Any]:
        """Returns the body of an error."""

    @abstractmethod
    def error_event(self, code: str, message: str) -> bytes:
        """Returns the frame of an error within a stream."""

    def refused(self, request: Request) -> bytes | None:
        """Returns the error for a request that cannot be processed; None: it can."""
        return None

    def is_streamed(self, request: Request) -> bool:
        """Returns whether a request asks for a streamed answer."""
        return bool(request.body.get("stream"))

    async def wait_asked(self) -> None:
        """Waits until a client has made a request."""
        await asyncio.wait_for(self._asked.wait(), _WAIT_SECONDS)

    async def wait_hung_up(self) -> None:
        """Waits until a client has closed its connection during an answer."""
        await asyncio.wait_for(self._hung_up.wait(), _WAIT_SECONDS)

    def forget_hang_ups(self) -> None:
        """Forgets earlier hang-ups and requests, so that waits start afresh."""
        self._hung_up.clear()
        self._asked.clear()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        connection = _Connection(reader, writer)
        try:
            while request := await _read(reader):
                self.requests.append(request)
                self._asked.set()
                if not await self._answer(request, connection):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # The client, or the test, is done with the connection.
        finally:
            self._tasks.discard(task)
            await _close(writer)

    async def _answer(self, request: Request, connection: _Connection) -> bool:
        try:
            return await self._serve(request, connection)
        except ConnectionError:
            self._hung_up.set()
            return False

    async def _serve(self, request: Request, connection: _Connection) -> bool:
        """Answers one request; False: the connection is over."""
        fault, writer = self.fault, connection.writer
        if self.script:
            self.reply = self.script.pop(0)
        if refusal := self.refused(request):
            await _write(writer, 422, {"Content-Type": "application/json"}, refusal)
        elif fault.status:
            retry = {"Retry-After": fault.retry_after} if fault.retry_after and self.has_retry_after else {}
            body = json.dumps(self.error(fault.code, fault.message)).encode()
            await _write(writer, fault.status, {"Content-Type": "application/json", **retry}, body)
        elif self.is_streamed(request):
            return await self._stream(request, connection)
        elif fault.stall_after is not None:
            await self._stall(connection)
            return False
        else:
            body = json.dumps(self.answer(request)).encode() if fault.body is None else fault.body
            await _write(writer, 200, {"Content-Type": fault.content_type or "application/json"}, body)
        return True

    async def _stream(self, request: Request, connection: _Connection) -> bool:
        fault, writer = self.fault, connection.writer
        content_type = fault.content_type or "text/event-stream"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        frames = list(self.events(request)) if fault.body is None else [fault.body]
        for sent, frame in enumerate(frames):
            if sent == fault.cut_after:
                break
            if sent == fault.stall_after:
                await self._stall(connection)
                return False
            if sent == fault.error_after:
                writer.write(_chunk(self.error_event(fault.code, fault.message)))
                break
            if fault.is_dripped:
                await _drip(writer, frame)
            else:
                writer.write(_chunk(frame))
            await writer.drain()
        if fault.cut_after is not None and not fault.is_cut_clean:
            await writer.drain()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _stall(self, connection: _Connection) -> None:
        """Sends nothing more until the client hangs up."""
        await connection.writer.drain()
        if not await connection.reader.read(1):
            self._hung_up.set()


def sse(data: Mapping[str, Any], event: str = "") -> bytes:
    """Returns a frame of server-sent events."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def pieces(texts: Sequence[str]) -> Iterator[str]:
    """Yields the pieces that are not empty."""
    return (text for text in texts if text)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None  # The client is done with the connection.
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(first.split()[1].partition("?")[0], headers, json.loads(body))


async def _write(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Closes a connection for good, whatever state it is in."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _drip(writer: asyncio.StreamWriter, frame: bytes) -> None:
    for at in range(len(frame)):
        writer.write(_chunk(frame[at : at + 1]))
        await writer.drain()
        await asyncio.sleep(0)  # Lets the client read it before the next.


def _chunk(frame: bytes) -> bytes:
    return f"{len(frame):x}\r\n".encode() + frame + b"\r\n"
