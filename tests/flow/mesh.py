"""A mesh of real processes, started with the command that users run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agentshell.mesh.credentials import Keyring
from agentshell.mesh.data_directory import Endpoints, endpoints_file
from kfm.personality.v1.personality_service_pb2 import KNOWLEDGE_STATE_READY, GetRequest
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub
from xenocomm import Client

SERVICES = ("memory", "provider", "personality", "tool", "runtime", "gateway")
_AGENTSHELL = str(Path(sys.executable).with_name("agentshell"))
_START_SECONDS = 120.0  # On a loaded machine a dozen processes take their time.
_STOP_SECONDS = 60.0
_LOOK_SECONDS = 0.05


class Mesh:
    """Processes over one data directory: one for all services, or one for each in `services`.

    `database_url` may be empty for a single process, which then has its own Postgres. A service named more than once
    runs in several processes: `manager`, `manager-1`, ...
    """

    def __init__(
        self,
        data_dir: Path,
        database_url: str,
        environment: dict[str, str],
        *,
        separate: bool,
        services: Sequence[str] = SERVICES,
    ) -> None:
        self.data_dir = data_dir
        self.database_url = database_url
        self.addresses: dict[str, str] = {}  # of the processes that serve clients
        replicas = Counter[str]()
        self._names: list[str] = [] if separate else [""]
        for service in services if separate else ():
            self._names.append(f"{service}-{replicas[service]}" if replicas[service] else service)
            replicas[service] += 1
        self._processes: dict[str, Process] = {}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AGENTSHELL_")},
            **({"AGENTSHELL_DATABASE__URL": database_url} if database_url else {}),
            "AGENTSHELL_SERVER__ADDRESS": "127.0.0.1:0",
            "AGENTSHELL_SERVER__HTTP_ADDRESS": "127.0.0.1:0",
            "AGENTSHELL_TELEMETRY__LOG_LEVEL": "warning",
            **environment,
        }

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints of the gateway's process."""
        return Endpoints.model_validate_json(endpoints_file(self.data_dir).read_text())

    def address_of(self, service: str) -> str:
        """Returns a service's address: the gateway's, or the socket of the service's own process."""
        separate = service != "gateway" and "" not in self._names
        return f"unix:{self.data_dir}/run/{service}.sock" if separate else self.endpoints.address

    def key(self, tenant_id: str, principal_id: str = "tester") -> str:
        """Makes an API key."""
        return Keyring(self.data_dir / "api-keys.json", self.data_dir / "mesh.key").create(tenant_id, principal_id)

    @asynccontextmanager
    async def client(self, tenant_id: str, service: str = "gateway") -> AsyncGenerator[Client]:
        """Connects a client of a tenant to the process of a service."""
        address = self.address_of(service)
        async with Client.connect(address, self.key(tenant_id), timeout_seconds=60) as client:
            yield client

    async def start(self) -> None:
        """Starts the processes that are not running, and returns when all are ready."""
        await asyncio.gather(*(self._start(name) for name in self._names if name not in self._processes))

    async def wait_for_knowledge(self) -> None:
        """Waits until the sample pack's knowledge is in memory."""
        async with asyncio.timeout(_START_SECONDS), self.client("tester", "personality") as client:
            stub = PersonalityServiceStub(client.channel)
            while (await stub.Get(GetRequest())).personality.knowledge_state != KNOWLEDGE_STATE_READY:  # noqa: ASYNC110 - state of another process
                await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """Stops all processes as an operator would."""
        await asyncio.gather(*(self._end(name, signal.SIGTERM) for name in list(self._processes)))

    async def kill(self, service: str) -> None:
        """Kills the process that runs a service, with SIGKILL."""
        await self._end(service if service in self._processes else "", signal.SIGKILL)

    async def _start(self, name: str) -> None:
        service, _, replica = name.partition("-")
        socket = {"AGENTSHELL_SERVER__MESH_ADDRESS": f"unix:{self.data_dir}/run/{name}.sock"} if replica else {}
        command = (_AGENTSHELL, "up", *([service] if service else []), "--data-dir", str(self.data_dir))
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=self._environment | socket)
        self._processes[name] = process
        assert process.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            while line := (await process.stdout.readline()).decode():
                if line.startswith("gRPC"):
                    self.addresses[name] = line.split()[1]
                if line.startswith("ready"):
                    return
        raise AssertionError(f"{' '.join(command)} ended with {await process.wait()}")

    async def _end(self, name: str, number: signal.Signals) -> None:
        process = self._processes.pop(name)
        if process.returncode is None:
            process.send_signal(number)
        assert process.stdout is not None
        async with asyncio.timeout(_STOP_SECONDS):
            await process.stdout.read()
            code = await process.wait()
        assert code == (0 if number is signal.SIGTERM else -number)
