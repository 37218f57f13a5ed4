"""A mesh under fire: processes over one data directory, killed at their boundaries or at any instant."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.crash.page import Page

from agentshell.mesh.credentials import Keyring
from agentshell.mesh.data_directory import Endpoints, endpoints_file
from xenocomm import Client

_OTHERS = ("memory", "provider", "personality", "tool", "gateway")
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_CALL_SECONDS = 90.0  # For a loaded machine; elsewhere no call takes this long.
_ERRORS_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Layout:
    """The processes and the services of each; a process with none named runs them all, with its own Postgres.

    `is_split`: the log appends to one topic after the other, as Iggy does.
    """

    name: str
    processes: Mapping[str, Sequence[str]]
    is_split: bool = False


EMBEDDED = Layout("embedded", {"mesh": ()})
TOGETHER = Layout("together", {"mesh": ("manager", "worker", *_OTHERS)}, is_split=True)
APART = Layout("apart", {"mesh": ("manager", *_OTHERS), "worker": ("worker",)})
LAYOUTS = (EMBEDDED, TOGETHER, APART)


@dataclass(slots=True, eq=False)
class _Life:
    """A running process; the task `told` ends when the process does."""

    pid: int
    ready: asyncio.Event
    told: asyncio.Task[None]

    @property
    def is_over(self) -> bool:
        return self.told.done()

    async def end(self, how: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if not self.is_over:
                os.kill(self.pid, how)
        async with asyncio.timeout(_STOP_SECONDS):
            await self.told

    async def begun(self) -> bool:
        """Waits until the process is ready or has ended; returns whether it is ready."""
        waiting = asyncio.create_task(self.ready.wait())
        try:
            async with asyncio.timeout(_START_SECONDS):
                await asyncio.wait([waiting, self.told], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        return self.ready.is_set()


class FaultyMesh:
    """The processes of a layout. Create with `open`. `pages` has the page of each process."""

    def __init__(
        self, layout: Layout, data_dir: Path, environment: Mapping[str, str], seed: int, launcher: Process
    ) -> None:
        self.layout = layout
        self.data_dir = data_dir
        self.pages = {name: Page(data_dir / f"{name}.page") for name in layout.processes}
        self.starts = 0
        self._seed = seed
        self._launcher = launcher
        self._lives: dict[str, _Life] = {}
        self._births: dict[str, asyncio.Future[None]] = {}
        self._death = asyncio.Event()
        peers = ", ".join(f'{name} = "{self._socket("mesh")}"' for name in _OTHERS)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AGENTSHELL_")},
            "AGENTSHELL_SERVER__ADDRESS": "127.0.0.1:0",
            "AGENTSHELL_SERVER__HTTP_ADDRESS": "127.0.0.1:0",
            "AGENTSHELL_TELEMETRY__LOG_LEVEL": "error",
            **({"AGENTSHELL_PEERS": f"{{{peers}}}"} if len(layout.processes) > 1 else {}),
            **environment,
        }
        for page in self.pages.values():
            page.is_split = layout.is_split
            page.arm()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, layout: Layout, data_dir: Path, environment: Mapping[str, str], seed: int
    ) -> AsyncGenerator[FaultyMesh]:
        """Opens a mesh that is not started yet; on exit all its processes are killed."""
        command = (sys.executable, "-m", "tests.crash.process")
        with (data_dir / "errors.log").open("ab") as errors:
            launcher = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stderr=errors, cwd=Path(__file__).parents[2]
            )
        mesh = cls(layout, data_dir, environment, seed, launcher)
        server = await asyncio.start_unix_server(mesh._born, mesh._output)
        try:
            yield mesh
        finally:
            await mesh.kill()
            server.close()
            assert launcher.stdin is not None
            launcher.stdin.close()
            await launcher.wait()

    @property
    def errors(self) -> str:
        """The tail of its processes' standard error."""
        return (self.data_dir / "errors.log").read_text()[-_ERRORS_CHARACTERS:]

    def key(self, tenant_id: str) -> str:
        """Makes an API key."""
        return Keyring(self.data_dir / "api-keys.json", self.data_dir / "mesh.key").create(tenant_id, "tester")

    @asynccontextmanager
    async def client(self, api_key: str) -> AsyncGenerator[Client]:
        """Connects a client to the gateway that is running now."""
        address = Endpoints.model_validate_json(endpoints_file(self.data_dir).read_text()).address
        async with Client.connect(address, api_key, timeout_seconds=_CALL_SECONDS) as client:
            yield client

    async def start(self) -> bool:
        """Starts the processes that are not running; False: one ended before it was ready."""
        return all(await asyncio.gather(*(self._start(name) for name in self.layout.processes)))

    async def killed(self) -> None:
        """Returns when any process ends."""
        self._death.clear()
        await self._death.wait()

    async def kill(self, name: str = "") -> bool:
        """Kills one process, or all, with SIGKILL; False: it had already ended."""
        if unborn := [birth for birth in self._births.values() if not birth.done()]:
            await asyncio.wait(unborn, timeout=_START_SECONDS)
        lives = [self._lives.pop(name) for name in ((name,) if name else tuple(self._lives)) if name in self._lives]
        was_alive = any(not life.is_over for life in lives)
        await asyncio.gather(*(life.end(signal.SIGKILL) for life in lives))
        return was_alive

    async def stop(self) -> None:
        """Stops all processes as an operator would."""
        lives = list(self._lives.values())
        self._lives.clear()
        await asyncio.gather(*(life.end(signal.SIGTERM) for life in lives))

    async def _start(self, name: str) -> bool:
        birth, life = self._births.get(name), self._lives.get(name)
        if birth is None or (birth.done() and (life is None or life.is_over)):
            birth = self._order(name)
        async with asyncio.timeout(_START_SECONDS):
            await asyncio.shield(birth)
        return await self._lives[name].begun()

    def _order(self, name: str) -> asyncio.Future[None]:
        """Tells the launcher to start a process; returns a future that is done once the process runs."""
        self.starts += 1
        order = {
            "name": name,
            "services": self.layout.processes[name],
            "data_dir": str(self.data_dir),
            "environment": self._environment | {"AGENTSHELL_SERVER__MESH_ADDRESS": self._socket(name)},
            "page": str(self.data_dir / f"{name}.page"),
            "output": str(self._output),
            "seed": self._seed + self.starts,
        }
        assert self._launcher.stdin is not None
        self._launcher.stdin.write(json.dumps(order).encode() + b"\n")
        self._births[name] = asyncio.get_running_loop().create_future()
        return self._births[name]

    async def _born(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads a process's output until it ends; the first line says who it is."""
        told, ready = asyncio.current_task(), asyncio.Event()
        assert told is not None
        name, _, pid = (await reader.readline()).decode().partition(" ")
        self._lives[name] = _Life(int(pid), ready, told)
        self._births[name].set_result(None)
        with suppress(ConnectionError):
            while line := await reader.readline():
                if line.startswith(b"ready"):
                    ready.set()
        writer.close()
        self._death.set()

    @property
    def _output(self) -> Path:
        return self.data_dir / "output.sock"

    def _socket(self, name: str) -> str:
        return f"unix:{self.data_dir}/run/{name}.sock"
