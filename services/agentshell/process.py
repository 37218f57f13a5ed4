"""A process of the mesh: starts some or all of the services, and stops them cleanly."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Sequence

import grpc.aio
import structlog

from agentshell.mesh import channel, data_directory, telemetry, tls
from agentshell.mesh.config import Config
from agentshell.mesh.data_directory import Endpoints
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.http import HttpServer
from agentshell.mesh.server import Server
from agentshell.topology import SERVICES, WHOLE, build
from agentshell.topology.parts import Member, Parts, Work
from kfm.error.v1 import error_pb2

_log = structlog.get_logger("agentshell")

DEFAULT_TENANT = "default"
DEFAULT_PRINCIPAL = "owner"
_STOP_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_GC_THRESHOLDS = (10_000, 50, 50)


class Process:
    """Runs the named services, or all of them if none are named. Create it in the event loop that runs it.

    Raises CONFIG_INVALID for an unknown service, or for a data directory that cannot be created.
    """

    def __init__(self, config: Config, names: Sequence[str] = ()) -> None:
        if unknown := sorted(set(names).difference(SERVICES)):
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"there is no service {unknown[0]!r}; the services are {', '.join(SERVICES)}",
            )
        self.config = config
        self.names = [name for name in SERVICES if name in (names or WHOLE)]
        data = config.data_dir
        data_directory.make(data)
        self.keyring = data_directory.keyring(config)
        mesh_address = config.server.mesh_address or data_directory.socket(data, "-".join(self.names))
        # Services that share a data directory reach one another by the sockets in it, unless `peers` says otherwise.
        elsewhere = {name: data_directory.socket(data, name) for name in SERVICES if name not in self.names}
        self._addresses = dict.fromkeys(self.names, mesh_address) | elsewhere | config.peers
        self._mesh_address = mesh_address
        self._server = Server(config.server, mesh_address, self.keyring, config.tls)
        self._parts = Parts(config, self._connect)
        self._members: list[Member] = []
        self._background: list[asyncio.Task[None]] = []
        self._http: HttpServer | None = None

    @property
    def address(self) -> str:
        """The address that clients call."""
        return self._server.address

    @property
    def http_address(self) -> str:
        """The address of /metrics and /health; empty before `start`."""
        return self._http.address if self._http else ""

    async def start(self) -> None:
        """Starts everything and returns once every service is SERVING. On failure, leaves nothing running."""
        telemetry.setup(self.config.telemetry, "mesh" if self.names == WHOLE else "-".join(self.names))
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        _log.info("ready", address=self.address, http_address=self.http_address, services=self.names)

    async def stop(self) -> None:
        """Drains: reports NOT_SERVING, lets calls in progress finish, and stops the services in reverse order."""
        if self._http is not None:
            self._http.ready = False
        await self._server.drain()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for member in reversed(self._members):
            await member.stop(self.config.server.drain_seconds)
        await self._server.stop(_STOP_SECONDS)
        await self._parts.close()
        if self._http is not None:
            self._http.close()

    async def _start(self) -> None:
        members = [await build(name, self._parts) for name in self.names]
        self._http = HttpServer(self.config.server.http_address)
        for member in members:
            for service, register in member.services.items():
                self._server.add(service, register)
        await self._server.start()
        for key, address in (("server.address", self.address), ("server.mesh_address", self._mesh_address)):
            if tls.is_exposed(self.config.tls, address):
                _log.warning(
                    "credentials cross the network in the clear: see the keys of tls", key=key, address=address
                )
        for member in members:
            self._members.append(member)
            await member.start()
            self._background += [asyncio.create_task(_keep(work)) for work in member.background]
        self._leave_word()
        await self._server.ready()
        self._http.ready = True
        gc.freeze()  # Objects that exist now stay; later ones are mostly freed without a search for cycles.
        gc.set_threshold(*_GC_THRESHOLDS)
        gc.enable()

    def _connect(self, service: str) -> grpc.aio.Channel:
        address = self._addresses[service]
        credentials = tls.calling(self.config.tls, address)
        if service in self.names and service not in self.config.peers:
            name = tls.own_name(self.config.tls)  # The certificate's own: it rarely covers the address listened on.
            return channel.within(self._server.loopback, address, self.keyring, credentials, name)
        return channel.connect(address, self.keyring, credentials)

    def _leave_word(self) -> None:
        """Creates the default tenant's key if there is none, and records where this process listens."""
        key_file = data_directory.key_file(self.config.data_dir)
        if not key_file.exists():
            key_file.touch(0o600)
            key_file.write_text(self.keyring.create(DEFAULT_TENANT, DEFAULT_PRINCIPAL) + "\n")
        if "gateway" in self.names:
            # Over a unix socket, a caller need not know which host names the certificate covers.
            by_socket = self.config.tls.certificate_file is not None and self._mesh_address.startswith("unix:")
            address = self._mesh_address if by_socket else self.address
            endpoints = Endpoints(address=address, http_address=self.http_address, pid=os.getpid())
            data_directory.endpoints_file(self.config.data_dir).write_text(endpoints.model_dump_json())


async def _keep(work: Work) -> None:
    """Runs a service's background work. If it fails unexpectedly, logs the exception and restarts it a second later."""
    while True:
        try:
            return await work()
        except Exception:
            _log.exception("work in the background failed", work=str(work))
        await asyncio.sleep(_RETRY_SECONDS)
