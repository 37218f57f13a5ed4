"""DBOS streaming the same texts: a process that writes them, or one that reads them, with DBOS launched in both.

    python -m benchmarks.peers.dbos_stream postgresql://... EXECUTOR COALESCE_MILLISECONDS

A line is `write PREFIX STREAMS TEXTS MILLISECONDS`: STREAMS workflows at once, each of which writes the time TEXTS
times, MILLISECONDS apart; or `read PREFIX STREAMS ...`, which prints how many seconds each text took to arrive. Writes
are from the workflow, not from a step, and notifications are on; except for their coalescing, all is at its default.
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

_KEY = "texts"
_BEGIN_SECONDS = 0.5  # So that readers wait before the first text.


@dbos.DBOS.workflow()
async def speak(texts: int, milliseconds: int) -> None:
    """Writes texts."""
    await dbos.DBOS.sleep_async(_BEGIN_SECONDS)
    for _ in range(texts):
        await dbos.DBOS.write_stream_async(_KEY, time.time_ns())
        await asyncio.sleep(milliseconds / 1e3)
    await dbos.DBOS.close_stream_async(_KEY)


async def write(name: str, texts: int, milliseconds: int) -> None:
    """Runs a workflow of this name."""
    with dbos.SetWorkflowID(name):
        await speak(texts, milliseconds)


async def read(name: str) -> list[float]:
    """Reads a workflow's stream to its end."""
    await asyncio.sleep(_BEGIN_SECONDS / 2)
    return [(time.time_ns() - sent) / 1e9 async for sent in dbos.DBOS.read_stream_async(name, _KEY)]


async def answer(words: list[str]) -> list[float]:
    """Carries out a line."""
    what, prefix, *numbers = words
    streams, texts, milliseconds = map(int, numbers)
    names = [f"{prefix}-{number}" for number in range(streams)]
    if what == "write":
        await asyncio.gather(*(write(name, texts, milliseconds) for name in names))
        return []
    return [seconds for latencies in await asyncio.gather(*map(read, names)) for seconds in latencies]


def main(url: str, executor: str, coalesce: str) -> None:
    """Runs DBOS on a database, as one of its executors."""
    dbos.DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "executor_id": executor,
            "log_level": "ERROR",
            "notification_coalesce_sec": int(coalesce) / 1e3,
        }
    )
    dbos.DBOS.launch()
    try:
        uvloop.run(serve(answer))
    finally:
        dbos.DBOS.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
