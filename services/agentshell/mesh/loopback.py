"""Calls between services of one process: the same as over a socket, without the socket.

A call crosses as bytes, and is served in a task and context of its own, behind the same interceptor. Neither side can
tell where the other is, so a service may move to another process at any time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from contextvars import Context
from typing import Any, NamedTuple, Self, cast

import grpc
import grpc.aio

from agentshell.mesh.methods import Methods

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# How much may wait for the reader before the service has to wait, as over HTTP/2.
_WINDOW_BYTES = 64 * 1024

_Metadata = Sequence[tuple[str, str]]


class _Status(NamedTuple):
    """How a call ended, with the fields of gRPC's own status."""

    code: grpc.StatusCode
    details: str = ""
    trailing_metadata: Sequence[tuple[str, Any]] = ()


_OK = _Status(grpc.StatusCode.OK)
_LATE = _Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
_CANCELLED = _Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
_CLOSED = _Status(grpc.StatusCode.UNAVAILABLE, "the process of the service is not serving")


class Loopback:
    """A process's services, as its own services call them. Requests may be up to `max_request_bytes` long."""

    def __init__(self, methods: Methods, max_request_bytes: int) -> None:
        self._methods = methods
        self._max_request_bytes = max_request_bytes
        self._calls: dict[asyncio.Task[None], LoopbackCall] = {}
        self._is_open = False

    def open(self) -> None:
        """Serves from now on. Before that, and after `close`, calls end with UNAVAILABLE."""
        self._is_open = True

    async def close(self, grace_seconds: float) -> None:
        """Accepts no more calls, gives those under way `grace_seconds` to end, and cancels the rest."""
        self._is_open = False
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace_seconds)
        for call in list(self._calls.values()):
            call.end(_CLOSED)
        await asyncio.gather(*self._calls, return_exceptions=True)

    def call(
        self, method: str, request: bytes, deserialize: Callable[[bytes], Any], timeout: float, metadata: _Metadata
    ) -> LoopbackCall:
        """Begins a call that may take `timeout` seconds; `deserialize` reads its responses."""
        call = LoopbackCall(deserialize, timeout, metadata)
        handler = self._methods.find(method)
        if not self._is_open:
            call.end(_CLOSED)
        elif handler is None:
            call.end(_Status(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
        elif len(request) > self._max_request_bytes:
            call.end(_too_large("request", len(request), self._max_request_bytes))
        else:
            task = call.begin(handler, request)
            self._calls[task] = call
            task.add_done_callback(self._calls.pop)
        return call


class _Aborted(Exception):  # noqa: N818 - how a service ends a call
    """The service ends the call with a status."""

    def __init__(self, status: _Status) -> None:
        super().__init__(status.details)
        self.status = status


class LoopbackCall:
    """A call under way: for its caller, what a stub returns; for its service, the context.

    The caller awaits it, iterates over it or reads it, in one task, and may cancel it.
    """

    def __init__(self, deserialize: Callable[[bytes], Any], timeout: float, metadata: _Metadata) -> None:
        loop = asyncio.get_running_loop()
        self._deserialize = deserialize
        self._serialize: Callable[[Any], bytes] | None = None
        self._metadata = metadata
        self._deadline = time.monotonic() + timeout
        self._responses: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._status: _Status | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._timer = loop.call_later(timeout, self.end, _LATE)
        self._task: asyncio.Task[None] | None = None

    # For its caller.

    def __await__(self) -> Generator[Any, None, Any]:
        return self.read().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        response = await self.read()
        if response is grpc.aio.EOF:
            raise StopAsyncIteration
        return response

    async def read(self) -> Any:
        """Returns the next response; EOF after the last. Cancelling the reader cancels the call. Raises AioRpcError."""
        while not self._responses:
            if self._status is not None:
                return self._over(self._status)
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            except asyncio.CancelledError:
                self.cancel()
                raise
        response = self._responses.popleft()
        self._waiting_bytes -= len(response)
        _wake(self._writer)
        return self._deserialize(response)

    def cancel(self) -> bool:
        """Ends the call, and the task that serves it. Returns whether it was under way."""
        return self.end(_CANCELLED)

    # For its service.

    def invocation_metadata(self) -> _Metadata:
        """Returns the caller's metadata."""
        return self._metadata

    def time_remaining(self) -> float:
        """Returns the seconds left, never below 0."""
        return 0.0 if self._status is _LATE else max(0.0, self._deadline - time.monotonic())

    async def write(self, message: Any) -> None:
        """Sends a response; then waits while the caller has too much left to read."""
        response = self._serialize(message) if self._serialize else b""
        if len(response) > MAX_MESSAGE_BYTES:
            raise _Aborted(_too_large("response", len(response), MAX_MESSAGE_BYTES))
        self._responses.append(response)
        self._waiting_bytes += len(response)
        _wake(self._reader)
        while self._waiting_bytes > _WINDOW_BYTES and self._status is None:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    def set_code(self, code: grpc.StatusCode) -> None:
        """Does nothing, nor does `set_details`: the interceptor decides how a call ends."""

    set_details = set_code

    async def abort_with_status(self, status: grpc.Status) -> None:
        """Ends the call with a status, by raising."""
        raise _Aborted(_Status(status.code, status.details or "", tuple(status.trailing_metadata or ())))

    # For the loopback.

    def begin(self, handler: Any, request: bytes) -> asyncio.Task[None]:
        """Starts to serve the call, in a task that shares nothing with the caller's context."""
        self._serialize = handler.response_serializer
        self._task = asyncio.get_running_loop().create_task(self._serve(handler, request), context=Context())
        return self._task

    def end(self, status: _Status) -> bool:
        """Ends the call from outside if it is under way: nothing more is sent or read. Returns whether it was."""
        if self._status is not None:
            return False
        self._responses.clear()
        self._finish(status)
        if self._task is not None:
            self._task.cancel()
        return True

    async def _serve(self, handler: Any, request: bytes) -> None:
        status = _CLOSED
        try:
            await self._answer(handler, handler.request_deserializer(request))
            status = _OK
        except _Aborted as aborted:
            status = aborted.status
        finally:  # The interceptor lets no other error through; what cancels the task has mostly ended the call before.
            self._finish(status)

    async def _answer(self, handler: Any, request: Any) -> None:
        if not handler.response_streaming:
            await self.write(await handler.unary_unary(request, self))
            return
        answer = handler.unary_stream(request, self)
        if not isinstance(answer, AsyncGenerator):  # It writes its responses itself.
            await answer
            return
        async with aclosing(cast("AsyncGenerator[Any]", answer)) as responses:
            async for response in responses:
                await self.write(response)

    def _finish(self, status: _Status) -> None:
        if self._status is None:
            self._status = status
            self._timer.cancel()
            _wake(self._reader)
            _wake(self._writer)

    def _over(self, status: _Status) -> Any:
        if status is _OK:
            return grpc.aio.EOF
        if status is _CANCELLED:
            raise asyncio.CancelledError
        trailing = grpc.aio.Metadata(*status.trailing_metadata)
        raise grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, details=status.details)


def _too_large(what: str, size: int, limit: int) -> _Status:
    return _Status(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the {what} has {size} bytes, the limit is {limit}")


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
