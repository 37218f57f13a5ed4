"""What every RPC goes through: trace, metrics, credential, deadline and contract on its way in, errors on its way out.

One interceptor rather than a chain: each link would cost every call, and the order matters enough to be read in one
place.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status
from opentelemetry import trace

from agentshell.mesh import call, errors, telemetry, validation
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.telemetry import RPC_SECONDS, RPCS_ACTIVE
from kfm.error.v1 import error_pb2

_log = structlog.get_logger("agentshell.rpc")

_seconds, _active = cache(RPC_SECONDS.labels), cache(RPCS_ACTIVE.labels)

_Context = grpc.aio.ServicerContext[Any, Any]
_Unary = Callable[[Any, _Context], Awaitable[Any]]
_Stream = Callable[[Any, _Context], AsyncGenerator[Any]]

# Reachable without a credential, so that load balancers and explorers work: what they say is public anyway.
_OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_DRAIN_SECONDS = 1.0

_DRAINING = AgentShellError(
    error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE, "the server is draining: watch again elsewhere, from the last cursor"
)


class ServerInterceptor:
    """Wraps methods. `drain` ends the streams that never end by themselves."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._watches: set[asyncio.Task[Any]] = set()
        self._draining = False

    def drain(self) -> None:
        """Ends every Watch stream, current and future, with SERVICE_UNAVAILABLE: its caller resumes elsewhere.

        One that is sending a response ends after it.
        """
        self._draining = True
        for task in self._watches:
            task.cancel()

    def wrap(self, method: str, handler: Any) -> Any:
        """Returns the handler of a method, wrapped in everything that each call goes through."""
        is_open = method.startswith(_OPEN_SERVICES)
        deserialize = handler.request_deserializer
        codec = (deserialize if is_open else _reading(deserialize), handler.response_serializer)
        if handler.unary_unary and not is_open:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), *codec)
        if handler.stream_unary and not is_open:
            return grpc.stream_unary_rpc_method_handler(self._unary(method, handler.stream_unary), *codec)
        if handler.unary_stream:
            behavior = handler.unary_stream if is_open else self._stream(method, handler.unary_stream)
            if method.rpartition("/")[2].startswith("Watch"):
                behavior = self._watch(behavior)
            return grpc.unary_stream_rpc_method_handler(behavior, *codec)
        if handler.stream_stream and not is_open:
            return grpc.stream_stream_rpc_method_handler(self._stream(method, handler.stream_stream), *codec)
        return handler

    def _unary(self, method: str, behavior: _Unary) -> _Unary:
        async def serve(request: Any, context: _Context) -> Any:
            with _Rpc(method, context) as rpc:
                try:
                    rpc.admit(self._keyring)
                    return await behavior(_checked(request), context)
                except Exception as error:
                    await rpc.fail(error, request)

        return serve

    def _stream(self, method: str, behavior: _Stream) -> _Stream:
        async def serve(request: Any, context: _Context) -> AsyncGenerator[Any]:
            with _Rpc(method, context) as rpc:
                try:
                    rpc.admit(self._keyring)
                    async with aclosing(behavior(_checked(request), context)) as responses:
                        async for response in responses:
                            yield response
                except Exception as error:
                    await rpc.fail(error, request)

        return serve

    def _watch(self, behavior: Callable[[Any, _Context], Any]) -> Callable[[Any, _Context], Awaitable[None]]:
        async def serve(request: Any, context: _Context) -> None:
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            self._watches.add(task)
            try:
                if self._draining:
                    raise asyncio.CancelledError
                answer = behavior(request, context)
                if not isinstance(answer, AsyncGenerator):  # grpcio's health service writes its responses itself.
                    return await answer
                async with aclosing(cast("AsyncGenerator[Any]", answer)) as responses:
                    async for response in responses:
                        self._watches.discard(task)  # Cut off while sending a response, a call cannot get a status.
                        await context.write(response)
                        self._watches.add(task)
                        if self._draining:
                            raise asyncio.CancelledError
            except asyncio.CancelledError:
                if not self._draining:
                    raise
                await _abort(context, _DRAINING)
            finally:
                self._watches.discard(task)

        return serve


class _Rpc:
    """One RPC under way: its span, its metrics, its end."""

    def __init__(self, method: str, context: _Context) -> None:
        self._method = method
        self._context = context
        self._code = grpc.StatusCode.OK.name
        self._metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        self._span = trace.INVALID_SPAN

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        _active(self._method).inc()
        name, headers = self._method.removeprefix("/"), self._metadata
        self._span = telemetry.enter_span(
            name,
            headers.get("traceparent", ""),
            headers.get("tracestate", ""),
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": name},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            expired = self._context.time_remaining() == 0
            self._code = (grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED).name
        _active(self._method).dec()
        _seconds(self._method, self._code).observe(time.perf_counter() - self._started)
        if self._span.is_recording():
            self._span.set_attribute("rpc.response.status_code", self._code)
            if self._code in ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"):
                self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()

    def admit(self, keyring: Keyring) -> None:
        """Admits the call: makes it the one that the task serves. Raises CREDENTIAL_INVALID and DEADLINE_REQUIRED."""
        principal, from_mesh = keyring.verify(self._metadata.get("authorization", ""))
        timeout = cast("float | None", self._context.time_remaining())  # The stubs omit None.
        if from_mesh and timeout is None:
            raise AgentShellError(
                error_pb2.ERROR_REASON_DEADLINE_REQUIRED, f"{self._method} inside the mesh needs a deadline: set one"
            )
        call.enter(principal, timeout, is_inside=from_mesh)
        structlog.contextvars.bind_contextvars(tenant_id=principal.tenant_id)

    async def fail(self, exception: Exception, request: Any) -> None:
        """Ends the RPC with the error as a rich status; `request` is its request, or a stream of requests."""
        if isinstance(request, AsyncIterator):
            await _drain(cast("AsyncIterator[Any]", request))
        error = errors.of(exception)
        self._code = error.code.name
        if error.reason == error_pb2.ERROR_REASON_INTERNAL:
            _log.error("rpc failed", method=self._method, exc_info=exception)
        else:
            _log.debug("rpc refused", method=self._method, reason=error.name, message=error.message)
        await _abort(self._context, error)


def unknown(method: str) -> Any:
    """Returns the handler for a method that nothing here serves: it refuses whatever is sent."""

    async def refuse(_: AsyncIterator[bytes], context: _Context) -> None:
        message = f"this server has no method {method!r:.200}; its reflection lists the methods it has"
        await _abort(context, AgentShellError(error_pb2.ERROR_REASON_NOT_IMPLEMENTED, message))

    return cast("Any", grpc.stream_stream_rpc_method_handler(refuse))


async def _abort(context: _Context, error: AgentShellError) -> None:
    await context.abort_with_status(rpc_status.to_status(errors.to_status(error)))


async def _drain(requests: AsyncIterator[Any]) -> None:
    """Reads what a client still sends, for a moment: Python's reports INTERNAL if a call ends while it writes."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in requests:
                pass


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Bytes that are not a message of the method, and why; `_checked` refuses them."""

    why: str


def _reading(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError as error:
            return _Unreadable(str(error))

    return read


def _checked(request: Any) -> Any:
    """Returns a request that keeps the contract's rules, or a stream of such requests. Raises INVALID_REQUEST."""
    if isinstance(request, AsyncIterator):
        return _each_checked(cast("AsyncIterator[Any]", request))
    if isinstance(request, _Unreadable):
        raise errors.invalid("request", f"cannot be read: {request.why}")
    validation.check(request)
    return request


async def _each_checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)
