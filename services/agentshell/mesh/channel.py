"""How one service calls another: a channel whose calls carry the caller's tenant, deadline and trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import grpc
import grpc.aio

from agentshell.mesh import call
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.loopback import MAX_MESSAGE_BYTES, Loopback, LoopbackCall
from agentshell.mesh.telemetry import PROPAGATOR

# For a call on behalf of a caller without a deadline of its own: inside the mesh every call has one.
DEFAULT_TIMEOUT_SECONDS = 30.0

# No `timeout` here, ever: grpc fires it early (facts/grpc.md section 4). Only UNAVAILABLE is tried again (AIP-194).
_SERVICE_CONFIG: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

_Details = grpc.aio.ClientCallDetails


def connect(address: str, keyring: Keyring) -> grpc.aio.Channel:
    """Returns a channel to a member of the mesh (`unix:PATH` or `host:port`). The caller closes it."""
    interceptors = [_UnaryUnary(keyring), _UnaryStream(keyring), _StreamUnary(keyring)]
    return grpc.aio.insecure_channel(address, options=OPTIONS, interceptors=interceptors)


def within(loopback: Loopback, address: str, keyring: Keyring) -> grpc.aio.Channel:
    """Returns a channel to the services of this process, whose address is for requests that stream."""
    return cast("grpc.aio.Channel", _Within(loopback, connect(address, keyring), keyring))


class _Carrier:
    """Puts the call being served into the call being made."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def timeout(self, asked: float | None) -> float:
        limits = [limit for limit in (asked, call.current().remaining()) if limit is not None]
        return min(limits, default=DEFAULT_TIMEOUT_SECONDS)

    def metadata(self) -> dict[str, str]:
        carried = {"authorization": f"Bearer {self._keyring.mint(call.current().principal)}"}
        PROPAGATOR.inject(carried)
        return carried

    def carry(self, details: _Details) -> _Details:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self.metadata().items())
        timeout = self.timeout(details.timeout)
        return _Details(details.method, timeout, metadata, details.credentials, details.wait_for_ready)


# grpc.aio takes an interceptor for the first of its kinds alone, so each kind has its class.
class _UnaryUnary(_Carrier, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: _Details, request: Any
    ) -> Any:
        return await continuation(self.carry(client_call_details), request)


class _UnaryStream(_Carrier, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: _Details, request: Any
    ) -> Any:
        return await continuation(self.carry(client_call_details), request)


class _StreamUnary(_Carrier, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: _Details, request_iterator: Any
    ) -> Any:
        return await continuation(self.carry(client_call_details), request_iterator)


class _Within(_Carrier):
    """A channel as stubs use it: calls of one request go by the loopback, those of a stream of them to the address."""

    def __init__(self, loopback: Loopback, remote: grpc.aio.Channel, keyring: Keyring) -> None:
        super().__init__(keyring)
        self._loopback = loopback
        self.stream_unary = remote.stream_unary
        self.stream_stream = remote.stream_stream
        self.close = remote.close

    def unary_unary(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_options: Any
    ) -> Callable[..., LoopbackCall]:
        def begin(request: Any, *, timeout: float | None = None) -> LoopbackCall:
            content, metadata = request_serializer(request), tuple(self.metadata().items())
            return self._loopback.call(method, content, response_deserializer, self.timeout(timeout), metadata)

        return begin

    unary_stream = unary_unary
