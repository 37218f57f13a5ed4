"""A process of the mesh: starts some of the services, or all of them, and ends well."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict

from agentshell.mesh import telemetry
from agentshell.mesh.config import Config
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.http import HttpServer
from agentshell.mesh.server import Server
from agentshell.topology import SERVICES, Member, Parts
from kfm.error.v1 import error_pb2

_log = structlog.get_logger("agentshell")

DEFAULT_TENANT = "default"
DEFAULT_PRINCIPAL = "owner"
_STOP_SECONDS = 1.0
_SOCKET_PATH_BYTES = 100  # The system's limit is 107.


class Endpoints(BaseModel):
    """Where a running process is: what it leaves in its data directory for the command line to find."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    address: str
    http_address: str
    pid: int


def endpoints_file(data_dir: Path) -> Path:
    """Returns where a process that serves clients says where it is."""
    return data_dir / "run" / "endpoints.json"


def key_file(data_dir: Path) -> Path:
    """Returns where the API key of the default tenant is."""
    return data_dir / "default.key"


class Process:
    """Runs the services named, or all where none is."""

    def __init__(self, config: Config, names: Sequence[str] = ()) -> None:
        if unknown := sorted(set(names) - SERVICES.keys()):
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"there is no service {unknown[0]!r}; the services are {', '.join(SERVICES)}",
            )
        self.config = config
        self.names = [name for name in SERVICES if not names or name in names]
        data = config.data_dir
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data / "run").mkdir(exist_ok=True, mode=0o700)
        self.keyring = Keyring(
            config.auth.keys_file or data / "api-keys.json", config.auth.mesh_key_file or data / "mesh.key"
        )
        mesh_address = config.server.mesh_address or _socket(data, "-".join(self.names))
        # Services of one data directory find one another by the sockets in it, unless `peers` says otherwise.
        addresses = {name: mesh_address if name in self.names else _socket(data, name) for name in SERVICES}
        self._parts = Parts(config, self.keyring, addresses | config.peers)
        self._server = Server(config.server, mesh_address, self.keyring)
        self._members: list[Member] = []
        self._http: HttpServer | None = None

    @property
    def address(self) -> str:
        """Where clients call."""
        return self._server.address

    @property
    def http_address(self) -> str:
        """Where /metrics and /health are."""
        return self._http.address if self._http else ""

    async def start(self) -> None:
        """Starts everything and returns when every service is SERVING. On failure nothing is left running."""
        telemetry.setup(self.config.telemetry, "-".join(self.names) if len(self.names) < len(SERVICES) else "mesh")
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        _log.info("ready", address=self.address, http_address=self.http_address, services=self.names)

    async def stop(self) -> None:
        """Drains: says NOT_SERVING, lets what is under way end, and stops what was started, the last first."""
        if self._http is not None:
            self._http.ready = False
        await self._server.drain()
        for member in reversed(self._members):
            await member.stop(self.config.server.drain_seconds)
        await self._server.stop(_STOP_SECONDS)
        await self._parts.close()
        if self._http is not None:
            self._http.close()

    async def _start(self) -> None:
        self._http = HttpServer(self.config.server.http_address)
        members = [await SERVICES[name](self._parts) for name in self.names]
        for member in members:
            for service, register in member.services.items():
                self._server.add(service, register)
        await self._server.start()
        for member in members:
            self._members.append(member)
            await member.start()
        self._leave_word()
        await self._server.ready()
        self._http.ready = True

    def _leave_word(self) -> None:
        """Makes the default tenant's key where there is none, and says where this process is."""
        data = self.config.data_dir
        if not key_file(data).exists():
            key_file(data).touch(0o600)
            key_file(data).write_text(self.keyring.create(DEFAULT_TENANT, DEFAULT_PRINCIPAL) + "\n")
        if "gateway" in self.names:
            endpoints = Endpoints(address=self.address, http_address=self.http_address, pid=os.getpid())
            endpoints_file(data).write_text(endpoints.model_dump_json())


def _socket(data_dir: Path, name: str) -> str:
    """Returns the address of a socket in the data directory; where its path is too long for one, by a short way there.

    The short way is a link in a directory of our own that nobody else can write, named by what it leads to.
    """
    run = data_dir.absolute() / "run"
    path = run / f"{name}.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        digest = hashlib.sha256(os.fsencode(run)).hexdigest()[:16]
        short = Path(tempfile.gettempdir()) / f"agentshell-{os.getuid()}"
        short.mkdir(mode=0o700, exist_ok=True)
        status = short.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"{short} is not ours alone: remove it, or set server.mesh_address to unix:PATH",
            )
        link = short / digest
        if not link.is_symlink():
            link.symlink_to(run)
        path = link / f"{name}.sock"
    return f"unix:{path}"
