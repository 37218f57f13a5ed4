"""From the kill of a process to the next event of its turns, while another like it is alive."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from benchmarks import vendor
from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal, median
from benchmarks.floor import DURABLE
from benchmarks.mesh import ALL_BUT_RUNTIME, RUNTIME, Mesh, message
from kfm.turn.v1.turn_pb2 import ModelStep, Plan, Step
from kfm.turn.v1.turn_service_pb2 import RunTurnRequest, TurnSpec
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client

_KILLS = 12
_TURNS = 16
_LAYOUT = (ALL_BUT_RUNTIME, RUNTIME, RUNTIME)
_RUNTIMES = (1, 2)  # Their numbers in the layout; they are killed in turn.
_TEXTS, _APART_MILLISECONDS = 50, 40  # Each turn streams for two seconds.
_EARLIEST_SECONDS, _LATEST_SECONDS = 0.3, 1.0
_SETTLE_SECONDS = 1.5  # By then a restarted process has taken its share of the partitions.
_CALL_SECONDS = 60.0
_SETTINGS = (
    f"{DURABLE}; SIGKILL of one of 2 runtimes with {_TURNS} model calls under way; default lease; "
    "as its caller sees it, who waits for the event"
)


@dataclass(slots=True)
class _Seen:
    """What the caller of a turn saw: when its step was started again (0: it was not), and whether it completed."""

    spoke: asyncio.Event = field(default_factory=asyncio.Event)
    resumed: float = 0.0
    completed: bool = False


async def measure(bench: Bench) -> list[Figure]:
    """Kills again and again; turns of the process that stays alive are not counted."""
    chance, delays, lost = random.Random(1), list[float](), 0  # noqa: S311 - to be repeatable
    url = await bench.database("resume")
    async with AsyncExitStack() as stack:
        environment = vendor.environment(await stack.enter_async_context(vendor.run()))
        opening = Mesh.run(bench.directory / "resume", url, layout=_LAYOUT, environment=environment)
        mesh = await stack.enter_async_context(opening)
        client = await stack.enter_async_context(mesh.client())
        for number in range(bench.rounds(_KILLS)):
            await asyncio.sleep(_SETTLE_SECONDS)
            wait = chance.uniform(_EARLIEST_SECONDS, _LATEST_SECONDS)
            found, ended = await _kill(mesh, client, _RUNTIMES[number % len(_RUNTIMES)], wait)
            delays += found
            lost += _TURNS - ended
    if lost or not delays:
        raise RuntimeError(f"{lost} turns were lost, {len(delays)} were interrupted: no figure of this is right")
    settings = f"{_SETTINGS}; {bench.rounds(_KILLS)} kills, {len(delays)} interrupted turns"
    return [
        Figure("kill to resumed, p50", "ms", median(delays), goal=Goal("ours", "<=", 300), settings=settings),
        Figure("kill to resumed, slowest", "ms", max(delays), settings=settings),
    ]


async def _kill(mesh: Mesh, client: Client, number: int, wait_seconds: float) -> tuple[list[float], int]:
    """Returns the milliseconds that each interrupted turn took to resume, and how many turns completed in all."""
    turns = [_Seen() for _ in range(_TURNS)]
    callers = [asyncio.create_task(_call(client, turn)) for turn in turns]
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            await asyncio.gather(*(turn.spoke.wait() for turn in turns))
            await asyncio.sleep(wait_seconds)
            killed = await mesh.kill(number)
            await asyncio.gather(*callers)
    finally:
        for caller in callers:
            caller.cancel()
    await mesh.start(number)
    delays = [(turn.resumed - killed) * 1e3 for turn in turns if turn.resumed]
    return delays, sum(turn.completed for turn in turns)


async def _call(client: Client, turn: _Seen) -> None:
    plan = Plan(steps=[Step(step_id="speak", model=ModelStep(model=vendor.ticks(_TEXTS, _APART_MILLISECONDS)))])
    spec = TurnSpec(input=message("Say what time it is."), plan=plan)
    async for response in TurnServiceStub(client.channel).RunTurn(RunTurnRequest(turn=spec), timeout=_CALL_SECONDS):
        now = time.perf_counter()
        for update in response.updates:
            if update.HasField("delta"):
                turn.spoke.set()
            if update.event.step_scheduled.attempt > 1 and not turn.resumed:
                turn.resumed = now
            turn.completed = update.event.HasField("turn_completed")
