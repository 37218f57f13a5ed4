"""How one service calls another: a channel whose calls carry the caller's tenant, deadline and trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Self, cast

import grpc
import grpc.aio

from agentshell.mesh import call
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.loopback import MAX_MESSAGE_BYTES, Loopback, LoopbackCall
from agentshell.mesh.telemetry import PROPAGATOR

# For calls on behalf of a caller without a deadline: inside the mesh, every call has one.
DEFAULT_TIMEOUT_SECONDS = 30.0

# Never set `timeout` here: gRPC fires it up to 1.7 s early (grpc/grpc#34547). Only UNAVAILABLE is retried (AIP-194).
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


def connect(
    address: str, keyring: Keyring, credentials: grpc.ChannelCredentials | None = None, name: str = ""
) -> grpc.aio.Channel:
    """Returns a channel to a member of the mesh (`unix:PATH` or `host:port`). The caller closes it.

    With `credentials`, the member's certificate must be for `name`; empty: for the host in the address.
    """
    return cast("grpc.aio.Channel", _Remote(_channel(address, credentials, name), keyring))


def within(
    loopback: Loopback,
    address: str,
    keyring: Keyring,
    credentials: grpc.ChannelCredentials | None = None,
    name: str = "",
) -> grpc.aio.Channel:
    """Returns a channel to this process's own services; `address` takes the requests that stream. See `connect`."""
    return cast("grpc.aio.Channel", _Within(loopback, _channel(address, credentials, name), keyring))


def _channel(address: str, credentials: grpc.ChannelCredentials | None, name: str) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    options = [*OPTIONS, ("grpc.ssl_target_name_override", name)] if name else OPTIONS
    return grpc.aio.secure_channel(address, credentials, options=options)


class _Remote:
    """A channel for stubs, which carries the call being served into the calls it makes.

    It uses no interceptor: with one, grpc.aio runs a task for each call and a generator for its messages.
    """

    def __init__(self, channel: grpc.aio.Channel, keyring: Keyring) -> None:
        self._keyring = keyring
        self.unary_unary = self._carrying(channel.unary_unary)
        self.unary_stream = self._carrying(channel.unary_stream)
        self.stream_unary = self._carrying(channel.stream_unary)
        self.stream_stream = self._carrying(channel.stream_stream)
        self.close = channel.close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _carrying(self, kind: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
        def method(*arguments: Any, **options: Any) -> Callable[..., Any]:
            made = kind(*arguments, **options)

            def begin(request: Any, *, timeout: float | None = None) -> Any:
                return made(request, timeout=self._timeout(timeout), metadata=self._metadata())

            return begin

        return method

    def _timeout(self, asked: float | None) -> float:
        limits = [limit for limit in (asked, call.current().remaining()) if limit is not None]
        return min(limits, default=DEFAULT_TIMEOUT_SECONDS)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        carried = {"authorization": f"Bearer {self._keyring.mint(call.current().principal)}"}
        PROPAGATOR.inject(carried)
        return tuple(carried.items())


class _Within(_Remote):
    """Sends calls of a single request over the loopback, and calls that stream requests to the address."""

    def __init__(self, loopback: Loopback, channel: grpc.aio.Channel, keyring: Keyring) -> None:
        super().__init__(channel, keyring)
        self._loopback = loopback
        self.unary_unary = self.unary_stream = self._by_loopback

    def _by_loopback(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_options: Any
    ) -> Callable[..., LoopbackCall]:
        def begin(request: Any, *, timeout: float | None = None) -> LoopbackCall:
            content = request_serializer(request)
            return self._loopback.call(method, content, response_deserializer, self._timeout(timeout), self._metadata())

        return begin
