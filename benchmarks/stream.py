"""Streamed text: how long it takes to reach a reader after it is published, and after the model sends it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import NamedTuple

from benchmarks import vendor
from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal, median, percentile
from benchmarks.floor import Floor
from benchmarks.mesh import Mesh, message
from benchmarks.peer import Peer
from kfm.turn.v1.turn_pb2 import ModelStep, Plan, Step
from kfm.turn.v1.turn_service_pb2 import CreateTurnRequest, TurnSpec, WatchTurnRequest
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client

_ROUNDS = 4
_CALL_SECONDS = 60.0
_GOAL = Goal("ours", "<=", 5)
_NOT_AWAITED = "streamed text is not awaited: the machine's crash may lose its last moments, no process' does"
_SETTINGS = f"ours: {_NOT_AWAITED}; DBOS: each text committed before it is read"
_FROM_MODEL = f"{_NOT_AWAITED}; the model's HTTP server and its SDK included"
# How DBOS is set up: the milliseconds for which it coalesces notifications, by default and at the minimum.
_DBOS = {"DBOS": 10, "DBOS, coalescing 1 ms": 1}


class _Load(NamedTuple):
    """A number of streams at once, each of a number of texts, and the time between texts."""

    streams: int
    texts: int
    apart_milliseconds: int

    def __str__(self) -> str:
        return "1 stream" if self.streams == 1 else f"{self.streams} streams"


_LOADS = (_Load(1, 100, 20), _Load(20, 50, 100))


class _Latencies(NamedTuple):
    """Milliseconds that each text took to reach its reader, after it was published and after the model sent it."""

    published: list[float]
    said: list[float]


async def measure(bench: Bench) -> list[Figure]:
    """Reads streams, one at a time and several at once: ours, and DBOS' in each of its setups."""
    ours = await _ours(bench)
    async with Floor.open(await bench.database("stream_floor"), bench.directory) as floor:
        relay = await floor.relay_milliseconds()
    dbos = {name: await _dbos(bench, milliseconds) for name, milliseconds in _DBOS.items()}
    figures: list[Figure] = []
    for load, (published, said) in ours.items():
        for name, latencies in dbos.items():
            figures += _compare(load, published, name, latencies[load])
        title = f"stream, model to reader, {load}"
        name = f"stream, publish to reader, {load}, p50"
        figures += [
            Figure(name, "ms", median(published), "the log alone, in one process", relay, settings=_NOT_AWAITED),
            Figure(f"{title}, p50", "ms", median(said), settings=_FROM_MODEL),
            Figure(f"{title}, p99", "ms", percentile(said, 99), settings=_FROM_MODEL),
        ]
    return figures


def _compare(load: _Load, ours: list[float], name: str, dbos: list[float]) -> list[Figure]:
    title = f"stream, publish to reader, {load}"
    return [
        Figure(f"{title}, p50", "ms", median(ours), name, median(dbos), _GOAL, _SETTINGS),
        Figure(f"{title}, p99", "ms", percentile(ours, 99), name, percentile(dbos, 99), settings=_SETTINGS),
    ]


async def _ours(bench: Bench) -> dict[_Load, _Latencies]:
    found = {load: _Latencies([], []) for load in _LOADS}
    url = await bench.database("stream")
    async with AsyncExitStack() as stack:
        environment = vendor.environment(await stack.enter_async_context(vendor.run()))
        mesh = await stack.enter_async_context(Mesh.run(bench.directory / "stream", url, environment=environment))
        writer, reader = [await stack.enter_async_context(mesh.client()) for _ in range(2)]
        await _read(writer, reader, _LOADS[0], _Latencies([], []))  # Warms up.
        for _ in range(bench.rounds(_ROUNDS)):
            for load, latencies in found.items():
                await asyncio.gather(*(_read(writer, reader, load, latencies) for _ in range(load.streams)))
    return found


async def _read(writer: Client, reader: Client, load: _Load, latencies: _Latencies) -> None:
    """Starts a turn with one client and reads it to its end with another."""
    model = ModelStep(model=vendor.ticks(load.texts, load.apart_milliseconds))
    plan = Plan(steps=[Step(step_id="speak", model=model)])
    spec = TurnSpec(input=message("Say what time it is."), plan=plan)
    created = await TurnServiceStub(writer.channel).CreateTurn(CreateTurnRequest(turn=spec), timeout=_CALL_SECONDS)
    request, texts = WatchTurnRequest(turn_id=created.turn.turn_id), 0
    async for response in TurnServiceStub(reader.channel).WatchTurn(request, timeout=_CALL_SECONDS):
        now = time.time_ns()
        for update in response.updates:
            published = update.delta.header.time.ToNanoseconds()
            stamps = [int(stamp) for text in update.delta.texts for stamp in text.split()]
            latencies.published.extend((now - published) / 1e6 for _ in stamps)
            latencies.said.extend((now - stamp) / 1e6 for stamp in stamps)
            texts += len(stamps)
    if texts != load.texts:
        raise RuntimeError(f"a reader got {texts} of {load.texts} texts")


async def _dbos(bench: Bench, coalesce_milliseconds: int) -> dict[_Load, list[float]]:
    found: dict[_Load, list[float]] = {load: [] for load in _LOADS}
    url = await bench.database(f"dbos_stream{coalesce_milliseconds}")
    async with (
        Peer.run("dbos_stream", url, "writer", str(coalesce_milliseconds)) as writer,
        Peer.run("dbos_stream", url, "reader", str(coalesce_milliseconds)) as reader,
    ):
        for number in range(1 + bench.rounds(_ROUNDS)):
            for load, latencies in found.items():
                words = (f"round-{number}-{load.streams}", *load)
                _, seconds = await asyncio.gather(writer.ask("write", *words), reader.ask("read", *words))
                if len(seconds) != load.streams * load.texts:
                    raise RuntimeError(f"DBOS' readers got {len(seconds)} of {load.streams * load.texts} texts")
                latencies += [each * 1e3 for each in seconds] if number else []  # The first warms up.
    return found
