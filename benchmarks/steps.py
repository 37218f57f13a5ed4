"""Durable steps that do nothing: many turns at once, and one after another."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from benchmarks.figure import Figure, Goal, median
from benchmarks.floor import DURABLE, PRODUCERS, Floor
from benchmarks.mesh import Mesh, message
from benchmarks.processes import cpu_seconds, tree
from kfm.turn.v1.turn_pb2 import NoopStep, Plan, Step
from kfm.turn.v1.turn_service_pb2 import RunTurnRequest, TurnSpec
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client

TURNS = 50
STEPS = 5
CHAIN_STEPS = 20

_ROUNDS = 12
_CHAINS = 5
_SETTLE_SECONDS = 0.3  # What a load leaves behind (history, index) is paid for by that load.
_CALL_SECONDS = 60.0

_Load = Callable[[], Awaitable[float]]


class _Cost(NamedTuple):
    """What a load took: from its start to its end, and in processor time of all processes, what it left included."""

    seconds: float
    cpu_seconds: float


async def measure(mesh: Mesh, floor: Floor, dbos_url: str) -> list[Figure]:
    """Runs each load again and again: ours, the peer's and the floor's in turn."""
    bursts: dict[str, list[_Cost]] = {"ours": [], "dbos": []}
    chains: dict[str, list[float]] = {"ours": [], "dbos": []}
    rates: list[float] = []
    appends: list[float] = []
    disk: list[float] = []
    async with mesh.client() as client, _dbos(dbos_url) as dbos:

        def load(who: str, turns: int, steps: int) -> _Load:
            return lambda: burst(client, turns, steps) if who == "ours" else _dbos_burst(dbos, turns, steps)

        for who in bursts:  # Both warm up: connections, prepared statements, code.
            await load(who, TURNS, STEPS)()
        pids = tree(os.getpid())
        for _ in range(_ROUNDS):
            for who in bursts:
                bursts[who].append(await _cost(load(who, TURNS, STEPS), pids))
            for who in bursts:
                chains[who] += [await load(who, 1, CHAIN_STEPS)() for _ in range(_CHAINS)]
                await asyncio.sleep(_SETTLE_SECONDS)
            rates.append(await floor.appends_per_second())
            appends.append(await floor.append_milliseconds())
            disk.append(floor.disk_milliseconds())
    return [
        Figure("disk, 4 kB append", "ms", median(disk), settings="fdatasync; the physical limit"),
        *_many(bursts["ours"], bursts["dbos"], median(rates)),
        *_one(median(chains["ours"]), median(chains["dbos"]), median(appends)),
    ]


def _many(ours: list[_Cost], dbos: list[_Cost], floor: float) -> list[Figure]:
    name, steps = f"durable steps, {TURNS} turns x {STEPS}", TURNS * STEPS
    rate, peer_rate = (steps / median([cost.seconds for cost in costs]) for costs in (ours, dbos))
    cpu, peer_cpu = (median([cost.cpu_seconds for cost in costs]) / steps * 1e6 for costs in (ours, dbos))
    return [
        Figure(name, "1/s", rate, "DBOS", peer_rate, Goal("ratio", ">=", 10), DURABLE),
        Figure(name, "1/s", rate, f"one append a step, {PRODUCERS} producers", floor, settings=DURABLE),
        Figure(f"{name}, CPU of all processes", "us", cpu, "DBOS", peer_cpu, settings=f"{DURABLE}; a step"),
    ]


def _one(ours: float, dbos: float, append: float) -> list[Figure]:
    name = f"sequential step, a chain of {CHAIN_STEPS}"
    step, peer_step = (seconds / CHAIN_STEPS * 1e3 for seconds in (ours, dbos))
    return [
        Figure(name, "ms", step, "DBOS", peer_step, Goal("ratio", "<=", 0.4), DURABLE),
        Figure(name, "ms", step, "one append", append, settings=DURABLE),
    ]


async def _cost(load: _Load, pids: list[int]) -> _Cost:
    before = cpu_seconds(pids)
    seconds = await load()
    await asyncio.sleep(_SETTLE_SECONDS)
    return _Cost(seconds, cpu_seconds(pids) - before)


async def burst(client: Client, turns: int, steps: int) -> float:
    """Returns the seconds that so many turns at once take, each a chain of so many steps, read to its end."""
    stub = TurnServiceStub(client.channel)
    spec = TurnSpec(input=message("Nothing is to be done."), plan=_chain(steps))

    async def run() -> None:
        succeeded, completed = 0, False
        async for response in stub.RunTurn(RunTurnRequest(turn=spec), timeout=_CALL_SECONDS):
            succeeded += sum(update.event.HasField("step_succeeded") for update in response.updates)
            completed = any(update.event.HasField("turn_completed") for update in response.updates)
        if not completed or succeeded != steps:
            raise RuntimeError(f"a turn ended after {succeeded} of {steps} steps")

    began = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(turns)))
    return time.perf_counter() - began


def _chain(steps: int) -> Plan:
    def step(number: int) -> Step:
        return Step(step_id=f"s{number}", depends_on=[f"s{number - 1}"] if number else [], noop=NoopStep())

    return Plan(steps=[step(number) for number in range(steps)])


@asynccontextmanager
async def _dbos(database_url: str) -> AsyncGenerator[Process]:
    command = (sys.executable, "-m", "benchmarks.peers.dbos_steps", database_url)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        yield process
    finally:
        await process.communicate(b"")  # It ends with its stdin.


async def _dbos_burst(process: Process, workflows: int, steps: int) -> float:
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    process.stdin.write(f"{workflows} {steps}\n".encode())
    async with asyncio.timeout(_CALL_SECONDS):
        return float(await process.stdout.readline())
