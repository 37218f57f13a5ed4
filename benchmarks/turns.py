"""Real turns, one after another: search the guide's documents, answer from them, stream it, remember it."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.figure import Figure, median, percentile
from benchmarks.floor import DURABLE, Floor
from benchmarks.mesh import Mesh, until_it_knows
from xenocomm import Client

_QUESTIONS = (
    "What happens if the process is killed during a turn?",
    "How do I cancel a turn?",
    "How do I add a personality?",
    "Where are the API keys?",
)
_ROUNDS = 5
_TURNS = 40
_SETTLE_SECONDS = 0.3
_COMMITS = 3  # The request, and each of two steps with the decision that follows: none can be spared.
_SETTINGS = f"{DURABLE}; streamed text not awaited; local provider, default pack"


class Latency(NamedTuple):
    """Milliseconds from the call to the first text and to the end."""

    first_text: float
    end: float


async def measure(bench: Bench) -> list[Figure]:
    """Asks many times, each in a session of its own."""
    latencies: list[Latency] = []
    appends: list[float] = []
    mesh_url, floor_url = await bench.database("turns"), await bench.database("turns_floor")
    async with (
        Mesh.run(bench.directory / "turns", mesh_url) as mesh,
        mesh.client() as client,
        Floor.open(floor_url, bench.directory) as floor,
    ):
        await until_it_knows(client)
        for question in _QUESTIONS:
            await ask(client, question)
        for _ in range(bench.rounds(_ROUNDS)):
            await asyncio.sleep(_SETTLE_SECONDS)
            latencies += [await ask(client, _QUESTIONS[n % len(_QUESTIONS)]) for n in range(_TURNS)]
            appends.append(await floor.append_milliseconds())
    first, ends = zip(*latencies, strict=True)
    peer, commits = f"{_COMMITS} appends", _COMMITS * median(appends)
    return [
        Figure("turn to its end, p50", "ms", median(ends), peer, commits, settings=_SETTINGS),
        Figure("turn to its end, p99", "ms", percentile(ends, 99), peer, commits, settings=_SETTINGS),
        Figure("turn to its first text, p50", "ms", median(first), settings=_SETTINGS),
        Figure("turn to its first text, p99", "ms", percentile(first, 99), settings=_SETTINGS),
    ]


async def ask(client: Client, question: str) -> Latency:
    """Runs a turn in a new session and reads it to its end."""
    began, first_text, completed = time.perf_counter(), 0.0, False
    async for update in client.run(question):
        if not first_text and update.HasField("delta"):
            first_text = time.perf_counter() - began
        completed = update.event.HasField("turn_completed")
    if not completed:
        raise RuntimeError(f"the turn that asked {question!r} did not complete")
    return Latency(first_text * 1e3, (time.perf_counter() - began) * 1e3)
