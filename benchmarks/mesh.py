"""A mesh in processes of its own, started with the command that users use, at its defaults."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from agentshell.mesh.data_directory import Endpoints, endpoints_file, key_file
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.personality.v1.personality_service_pb2 import KNOWLEDGE_STATE_READY, GetRequest
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub
from xenocomm import Client

Services = tuple[str, ...]
Layout = Sequence[Services]
"""The services of each process; empty: all of them."""

UP = (str(Path(sys.executable).with_name("agentshell")), "up")
ALL: Services = ()
ALL_BUT_RUNTIME: Services = ("memory", "provider", "personality", "tool", "gateway")
RUNTIME: Services = ("runtime",)
MANAGER: Services = ("manager",)
WORKER: Services = ("worker",)

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_CALL_SECONDS = 60.0
_LOOK_SECONDS = 0.01


class Mesh:
    """Processes over one data directory. `ready_seconds` is the time from the last one's start to its ready line."""

    def __init__(self, data_dir: Path, layout: Layout, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.ready_seconds = 0.0
        self._data_dir = data_dir
        self._layout = layout
        self._command = command
        self._environment = environment
        self._processes: dict[int, Process] = {}
        self._addresses: list[str] = []

    @classmethod
    @asynccontextmanager
    async def run(
        cls,
        data_dir: Path,
        database_url: str = "",
        *,
        layout: Layout = (ALL,),
        command: Sequence[str] = UP,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Mesh]:
        """Runs a mesh, on a Postgres of its own if no URL is given, and stops it as an operator would."""
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AGENTSHELL_")},
            **({"AGENTSHELL_DATABASE__URL": database_url} if database_url else {}),
            "AGENTSHELL_SERVER__ADDRESS": "127.0.0.1:0",
            "AGENTSHELL_SERVER__HTTP_ADDRESS": "127.0.0.1:0",
            **(environment or {}),
        }
        mesh = cls(data_dir, layout, command, variables)
        try:
            for number in range(len(layout)):
                await mesh.start(number)
            yield mesh
        finally:
            await asyncio.gather(*(_stop(process) for process in mesh._processes.values()))

    @property
    def pid(self) -> int:
        """The id of the first process."""
        return self._processes[0].pid

    def clients(self) -> Sequence[AbstractAsyncContextManager[Client]]:
        """Returns a client of the default tenant, not yet connected, for each process that serves clients."""
        key = key_file(self._data_dir).read_text().strip()
        return [Client.connect(address, key, timeout_seconds=_CALL_SECONDS) for address in self._addresses]

    def client(self) -> AbstractAsyncContextManager[Client]:
        """Returns the first of the clients."""
        return self.clients()[0]

    async def start(self, number: int) -> None:
        """Starts a process of the layout, and returns when it is ready."""
        services = self._layout[number]
        arguments = (*self._command, *services, "--data-dir", str(self._data_dir))
        environment = {**self._environment, **self._whereabouts(number)}
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=DEVNULL, env=environment)
        self._processes[number] = process
        async with asyncio.timeout(_START_SECONDS):
            await _until_ready(process)
        self.ready_seconds = time.perf_counter() - began
        if not services or "gateway" in services:
            self._addresses.append(Endpoints.model_validate_json(endpoints_file(self._data_dir).read_text()).address)

    async def kill(self, number: int) -> float:
        """Kills a process without warning; returns when it did so, on the clock of `perf_counter`."""
        process = self._processes.pop(number)
        process.kill()
        killed = time.perf_counter()
        await process.communicate()
        return killed

    def _whereabouts(self, number: int) -> dict[str, str]:
        """Returns the variables of one process of several: where it listens, and the first as its peer for the rest."""
        if len(self._layout) == 1:
            return {}
        first, own = (f"unix:{self._data_dir}/run/{at}.sock" for at in (0, number))
        services = self._layout[number]
        peers = [f'{name} = "{first}"' for name in ALL_BUT_RUNTIME if services and name not in services]
        return {"AGENTSHELL_SERVER__MESH_ADDRESS": own, "AGENTSHELL_PEERS": f"{{ {', '.join(peers)} }}"}


async def until_it_knows(client: Client) -> None:
    """Waits until the sample pack's documents are in memory."""
    stub = PersonalityServiceStub(client.channel)
    async with asyncio.timeout(_START_SECONDS):
        while (await stub.Get(GetRequest())).personality.knowledge_state != KNOWLEDGE_STATE_READY:  # noqa: ASYNC110 - remote
            await asyncio.sleep(_LOOK_SECONDS)


def message(text: str) -> Message:
    """Returns a user's message."""
    return Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])


async def _until_ready(process: Process) -> None:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    while line := await process.stdout.readline():
        if line.startswith(b"ready"):
            return
    raise RuntimeError(f"`agentshell up` ended with status {await process.wait()}; start it by hand to see why")


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.communicate(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
