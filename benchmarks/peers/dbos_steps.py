"""DBOS running the same steps: a process of its own that runs one load a line of stdin and prints its seconds.

    python -m benchmarks.peers.dbos_steps postgresql://... <<< "50 5"

Steps are async functions that do nothing. A workflow is awaited where it is called, which is DBOS' fastest way: no
queue, no handle to poll. Everything else is at its default, but for the logs, which are errors only.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from typing import Any

import uvloop

dbos: Any = importlib.import_module("dbos")  # Without types here: only the `bench` extra has it.


@dbos.DBOS.step()
async def nothing() -> None:
    """A step."""


@dbos.DBOS.workflow()
async def chain(steps: int) -> None:
    """Steps, one after another."""
    for _ in range(steps):
        await nothing()


async def burst(workflows: int, steps: int) -> float:
    """Returns the seconds that so many workflows at once take."""
    began = time.perf_counter()
    await asyncio.gather(*(chain(steps) for _ in range(workflows)))
    return time.perf_counter() - began


async def serve() -> None:
    """Answers each line `WORKFLOWS STEPS` with the seconds it took, until stdin ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        workflows, steps = map(int, line.split())
        print(await burst(workflows, steps), flush=True)


def main(url: str) -> None:
    """Runs DBOS on a database."""
    dbos.DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
    dbos.DBOS.launch()
    try:
        uvloop.run(serve())
    finally:
        dbos.DBOS.destroy()


if __name__ == "__main__":
    main(sys.argv[1])
