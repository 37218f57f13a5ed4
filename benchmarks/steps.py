"""Durable steps that do nothing: many turns at once, and one after another."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.figure import Figure, Goal, median
from benchmarks.floor import DURABLE, Floor
from benchmarks.mesh import Mesh, message
from kfm.turn.v1.turn_pb2 import NoopStep, Plan, Step
from kfm.turn.v1.turn_service_pb2 import RunTurnRequest, TurnSpec
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client

TURNS = 50
STEPS = 5
CHAIN_STEPS = 20

_ROUNDS = 5
_BURSTS = 3
_CHAINS = 15
_SETTLE_SECONDS = 0.3  # What a load leaves behind (history, index) must not be charged to the next.
_CALL_SECONDS = 60.0


async def measure(mesh: Mesh, floor: Floor, dbos_url: str) -> list[Figure]:
    """Runs each load, ours and the peer's and the floor's in turn."""
    rates: dict[str, list[float]] = {"ours": [], "dbos": [], "floor": []}
    steps: dict[str, list[float]] = {"ours": [], "dbos": [], "floor": []}
    async with mesh.client() as client, _dbos(dbos_url) as dbos:
        await burst(client, TURNS, STEPS)  # Both warm up: connections, prepared statements, code.
        await _dbos_burst(dbos, TURNS, STEPS)
        for _ in range(_ROUNDS):
            await asyncio.sleep(_SETTLE_SECONDS)
            rates["ours"] += [TURNS * STEPS / await burst(client, TURNS, STEPS) for _ in range(_BURSTS)]
            await asyncio.sleep(_SETTLE_SECONDS)
            rates["dbos"] += [TURNS * STEPS / await _dbos_burst(dbos, TURNS, STEPS) for _ in range(_BURSTS)]
            rates["floor"].append(await floor.appends_per_second())
            steps["ours"] += [1e3 * await burst(client, 1, CHAIN_STEPS) / CHAIN_STEPS for _ in range(_CHAINS)]
            await asyncio.sleep(_SETTLE_SECONDS)
            steps["dbos"] += [1e3 * await _dbos_burst(dbos, 1, CHAIN_STEPS) / CHAIN_STEPS for _ in range(_CHAINS)]
            steps["floor"].append(await floor.append_milliseconds())
    rate, step = ({who: median(values) for who, values in kind.items()} for kind in (rates, steps))
    many, one = f"durable steps, {TURNS} turns x {STEPS}", f"sequential step, a chain of {CHAIN_STEPS}"
    return [
        Figure(many, "1/s", rate["ours"], "DBOS", rate["dbos"], Goal("ratio", ">=", 10), DURABLE),
        Figure(many, "1/s", rate["ours"], "one append a step, 50 producers", rate["floor"], settings=DURABLE),
        Figure(one, "ms", step["ours"], "DBOS", step["dbos"], Goal("ratio", "<=", 0.4), DURABLE),
        Figure(one, "ms", step["ours"], "one append", step["floor"], settings=DURABLE),
    ]


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
