"""DBOS running the same steps: a process of its own that runs one load per line of stdin and prints its seconds.

    python -m benchmarks.peers.dbos_steps postgresql://... EXECUTOR <<< "50 5"

Steps are async functions that do nothing. A workflow is awaited where it is called, which is DBOS' fastest way: no
queue, no handle to poll. Everything else is at its default, except that it logs only errors.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from typing import Any

import uvloop

from benchmarks.peers.serving import serve

dbos: Any = importlib.import_module("dbos")  # Without types here: only the `bench` extra has it.


@dbos.DBOS.step()
async def nothing() -> None:
    """A step."""


@dbos.DBOS.workflow()
async def chain(steps: int) -> None:
    """Steps, one after another."""
    for _ in range(steps):
        await nothing()


async def burst(words: list[str]) -> tuple[float]:
    """Returns the seconds that `WORKFLOWS STEPS` takes, with all workflows at once."""
    workflows, steps = map(int, words)
    began = time.perf_counter()
    await asyncio.gather(*(chain(steps) for _ in range(workflows)))
    return (time.perf_counter() - began,)


def main(url: str, executor: str) -> None:
    """Runs DBOS on a database, as one of its executors."""
    dbos.DBOS(config={"name": "bench", "system_database_url": url, "executor_id": executor, "log_level": "ERROR"})
    dbos.DBOS.launch()
    try:
        uvloop.run(serve(burst))
    finally:
        dbos.DBOS.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
