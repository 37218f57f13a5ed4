"""How one service calls another: a channel whose calls carry the caller's tenant, deadline and trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from agentshell.mesh import call
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.telemetry import PROPAGATOR

# For a call on behalf of a caller without a deadline of its own: inside the mesh every call has one.
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

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


class _Carrier:
    """Puts the call being served into the call being made."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def carry(self, details: _Details) -> _Details:
        current = call.current()
        limits = [limit for limit in (details.timeout, current.remaining()) if limit is not None]
        timeout = min(limits, default=DEFAULT_TIMEOUT_SECONDS)
        carrier = {"authorization": f"Bearer {self._keyring.mint(current.principal)}"}
        PROPAGATOR.inject(carrier)
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *carrier.items())
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
