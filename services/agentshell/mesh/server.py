"""A process of the mesh as the network sees it: one gRPC server with health, reflection and graceful shutdown."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from typing import Any, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from agentshell.mesh import acceptor, reflection, tls
from agentshell.mesh.config import ServerConfig, TlsConfig
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.loopback import Loopback
from agentshell.mesh.methods import Methods
from agentshell.mesh.server_interceptor import ServerInterceptor
from kfm.error.v1 import error_pb2

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
HEALTH = "grpc.health.v1.Health"


class Server:
    """Serves the services added to it: on `config.address` to clients, on `mesh_address` to the mesh."""

    def __init__(
        self, config: ServerConfig, mesh_address: str, keyring: Keyring, secured: TlsConfig | None = None
    ) -> None:
        self._config = config
        self._mesh_address = mesh_address
        self._tls = secured or TlsConfig()
        self._interceptor = ServerInterceptor(keyring)
        self._health: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] - set at run time
        self._services: list[str] = []
        options: list[tuple[str, Any]] = [
            ("grpc.so_reuseport", 0),  # Otherwise two servers can share a port, and each misses half of the calls.
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ]
        self._server = acceptor.server(options)
        methods = Methods(self._interceptor.wrap)
        self._server.add_generic_rpc_handlers([methods])
        self._methods = cast("grpc.aio.Server", methods)  # As generated code expects it.
        self.address = config.address
        self.loopback = Loopback(methods, config.max_message_bytes)
        """For the process's own services."""

    def add(self, service: str, register: Callable[[grpc.aio.Server], None]) -> None:
        """Adds a service by its full Protobuf name, before `start`."""
        register(self._methods)
        self._services.append(service)

    async def start(self) -> None:
        """Listens, and sets the actual port in `address`. Services answer, but are NOT_SERVING until `ready`."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._methods)
        reflection.add(self._methods, [*self._services, HEALTH])
        for service in ("", *self._services):
            await self._health.set(service, _NOT_SERVING)
        host = self._config.address.rpartition(":")[0]
        self.address = f"{host}:{self._listen(self._config.address, 'server.address')}"
        self._listen(self._mesh_address, "server.mesh_address")
        await self._server.start()
        self.loopback.open()
        if self._mesh_address.startswith("unix:"):
            os.chmod(self._mesh_address.removeprefix("unix:"), stat.S_IRUSR | stat.S_IWUSR)  # noqa: PTH101 - not blocking

    async def ready(self) -> None:
        """Reports SERVING for every service."""
        for service in ("", *self._services):
            await self._health.set(service, _SERVING)

    async def drain(self) -> None:
        """Reports NOT_SERVING for good and ends the Watch streams; other calls are still served."""
        await self._health.enter_graceful_shutdown()
        self._interceptor.drain()

    async def stop(self, grace_seconds: float) -> None:
        """Accepts no more calls, gives those under way `grace_seconds` to end, and cancels the rest."""
        await asyncio.gather(self._server.stop(grace_seconds), self.loopback.close(grace_seconds))

    def _listen(self, address: str, key: str) -> int:
        credentials = tls.serving(self._tls, address)
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"cannot listen on {address}: in use, or not an address of this machine; "
                f"set configuration key '{key}' to another, or port 0 for a free one",
                metadata={"key": key, "value": address, "fix": "set another address"},
            ) from None
