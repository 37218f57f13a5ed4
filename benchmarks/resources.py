"""What `agentshell up` takes: time until it is ready, time to its first answer, and memory when it is idle."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal, median
from benchmarks.floor import DURABLE
from benchmarks.mesh import Mesh, until_it_knows
from benchmarks.processes import memory_bytes, tree
from benchmarks.turns import ask

_ROUNDS = 3
_IDLE_SECONDS = 2.0
_QUESTION = "What happens if the process is killed during a turn?"
# Here `make` leaves how long it took to make the environment that this runs in.
_INSTALLED = Path(sys.prefix) / "installed"
_SETTINGS = f"{DURABLE}; all services in one process, Postgres bundled"


async def measure(bench: Bench) -> list[Figure]:
    """Starts the mesh on a new data directory, and once more on the same one."""
    new_ready: list[float] = []
    first_answers: list[float] = []
    warm_ready: list[float] = []
    memory: list[float] = []
    for number in range(bench.rounds(_ROUNDS)):
        data_dir = bench.directory / f"up-{number}"
        async with Mesh.run(data_dir) as mesh, mesh.client() as client:
            new_ready.append(mesh.ready_seconds)
            began = time.perf_counter()
            await until_it_knows(client)
            await ask(client, _QUESTION)
            first_answers.append(time.perf_counter() - began)
        async with Mesh.run(data_dir) as mesh:
            warm_ready.append(mesh.ready_seconds)
            async with mesh.client() as client:
                await ask(client, _QUESTION)
            await asyncio.sleep(_IDLE_SECONDS)
            memory.append(memory_bytes(tree(mesh.pid)) / 1e6)
    return [
        *_install(),
        Figure("up to ready, warm", "s", median(warm_ready), goal=Goal("ours", "<=", 3), settings=_SETTINGS),
        Figure("up to ready, new data directory", "s", median(new_ready), settings=_SETTINGS),
        Figure(
            "ready to the first answer", "s", median(first_answers), goal=Goal("ours", "<=", 10), settings=_SETTINGS
        ),
        Figure(
            "memory when idle, with Postgres", "MB", median(memory), goal=Goal("ours", "<=", 300), settings=_SETTINGS
        ),
    ]


def _install() -> list[Figure]:
    if not _INSTALLED.exists():
        return []
    seconds = float(_INSTALLED.read_text() or 0)
    how = "a virtual environment with all dependencies, from the package index"
    return [Figure("install, from nothing", "s", seconds, goal=Goal("ours", "<=", 90), settings=how)]
