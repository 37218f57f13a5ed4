"""The whole mesh in a process of its own, started by the command that users start it with, at its defaults."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from agentshell.mesh.data_directory import Endpoints, endpoints_file, key_file
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.personality.v1.personality_service_pb2 import KNOWLEDGE_STATE_READY, GetRequest
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub
from xenocomm import Client

UP = (str(Path(sys.executable).with_name("agentshell")), "up")
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_CALL_SECONDS = 60.0
_LOOK_SECONDS = 0.01


class Mesh:
    """A running mesh. `ready_seconds` is from the start of its process to its ready line."""

    def __init__(self, process: Process, data_dir: Path, ready_seconds: float) -> None:
        self.pid = process.pid
        self.ready_seconds = ready_seconds
        self._data_dir = data_dir

    @classmethod
    @asynccontextmanager
    async def run(cls, data_dir: Path, database_url: str = "", command: Sequence[str] = UP) -> AsyncGenerator[Mesh]:
        """Runs a mesh, on a Postgres of its own where no URL is given, and stops it as an operator would."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AGENTSHELL_")},
            **({"AGENTSHELL_DATABASE__URL": database_url} if database_url else {}),
            "AGENTSHELL_SERVER__ADDRESS": "127.0.0.1:0",
            "AGENTSHELL_SERVER__HTTP_ADDRESS": "127.0.0.1:0",
        }
        arguments = (*command, "--data-dir", str(data_dir))
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=DEVNULL, env=environment)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await _until_ready(process)
            yield cls(process, data_dir, time.perf_counter() - began)
        finally:
            await _stop(process)

    def client(self) -> AbstractAsyncContextManager[Client]:
        """Connects a client of the default tenant."""
        address = Endpoints.model_validate_json(endpoints_file(self._data_dir).read_text()).address
        return Client.connect(address, key_file(self._data_dir).read_text().strip(), timeout_seconds=_CALL_SECONDS)


async def until_it_knows(client: Client) -> None:
    """Returns when the sample pack's documents are in memory."""
    stub = PersonalityServiceStub(client.channel)
    async with asyncio.timeout(_START_SECONDS):
        while (await stub.Get(GetRequest())).personality.knowledge_state != KNOWLEDGE_STATE_READY:  # noqa: ASYNC110 - remote
            await asyncio.sleep(_LOOK_SECONDS)


def message(text: str) -> Message:
    """Returns what a user says."""
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
