"""The engines that run the same steps: ours, over one process or several, and our peers, as shipped and tuned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.mesh import ALL, ALL_BUT_RUNTIME, MANAGER, RUNTIME, WORKER, Layout, Mesh, message
from benchmarks.peer import Peer
from kfm.turn.v1.turn_pb2 import NoopStep, Plan, Step
from kfm.turn.v1.turn_service_pb2 import RunTurnRequest, TurnSpec
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client

Load = Callable[[int, int], Awaitable[float]]
"""Runs a number of turns at once, each a chain of a number of steps that do nothing; returns the seconds it took."""

_LAYOUTS: dict[str, Layout] = {
    "one process": (ALL,),
    "gateway | runtime": (ALL_BUT_RUNTIME, RUNTIME),
    "gateway | 2 runtimes": (ALL_BUT_RUNTIME, RUNTIME, RUNTIME),
    "gateway | manager | worker": (ALL_BUT_RUNTIME, MANAGER, WORKER),
    "2 x all": (ALL, ALL),
}
_SAVER_A_RUN = 50
_LANGGRAPH = (
    (1, 1, "LangGraph"),
    (_SAVER_A_RUN, 1, "LangGraph, a saver a run"),
    (_SAVER_A_RUN, 2, "LangGraph, a saver a run, 2 processes"),
)
_CALL_SECONDS = 60.0
_MAX_STEPS = "1000"  # A chain may have more steps than turns may by default.


class Contender(NamedTuple):
    """`family` is ours or the peer's; `name` says how it is set up; `processes` is how many of them run steps."""

    family: str
    name: str
    processes: int
    open: Callable[[], AbstractAsyncContextManager[Load]]


async def contenders(bench: Bench) -> list[Contender]:
    """Returns all that can run here, with a database each; ours in one process first."""
    found: list[Contender] = []
    for at, (name, layout) in enumerate(_LAYOUTS.items()):
        directory, url = bench.directory / f"mesh-{at}", await bench.database(f"mesh{at}")
        found.append(Contender("ours", name, len(layout), _opening_ours(directory, url, layout)))
    dbos, langgraph = await bench.database("dbos"), await bench.database("langgraph")
    for processes in (1, 2):
        name = f"DBOS, {processes} process{'es' if processes > 1 else ''}"
        commands = [("dbos_steps", dbos, f"executor-{number}") for number in range(processes)]
        found.append(Contender("DBOS", name, processes, _opening_peers(commands)))
    for savers, processes, name in _LANGGRAPH:
        commands = [("langgraph_steps", langgraph, str(savers))] * processes
        found.append(Contender("LangGraph", name, processes, _opening_peers(commands)))
    if program := bench.restate():
        command = ("restate_steps", program, str(bench.directory / "restate"))
        found.append(Contender("Restate", "Restate", 1, _opening_peers([command])))
    else:
        bench.skip("steps beside Restate", "AGENTSHELL_BENCH_RESTATE does not name its server's program")
    return found


async def burst(client: Client, turns: int, steps: int) -> float:
    """Returns the seconds that `turns` at once take, each a chain of `steps`, read to its end."""
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


def _opening_ours(data_dir: Path, url: str, layout: Layout) -> Callable[[], AbstractAsyncContextManager[Load]]:
    @asynccontextmanager
    async def opening() -> AsyncGenerator[Load]:
        limits = {"AGENTSHELL_RUNTIME__DEFAULT_STEPS": _MAX_STEPS}
        async with Mesh.run(data_dir, url, layout=layout, environment=limits) as mesh, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(client) for client in mesh.clients()]
            yield _shared([lambda turns, steps, client=client: burst(client, turns, steps) for client in clients])

    return opening


def _opening_peers(commands: Sequence[Sequence[str]]) -> Callable[[], AbstractAsyncContextManager[Load]]:
    def load(peer: Peer) -> Load:
        async def run(turns: int, steps: int) -> float:
            [seconds] = await peer.ask(turns, steps)
            return seconds

        return run

    @asynccontextmanager
    async def opening() -> AsyncGenerator[Load]:
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(Peer.run(*command)) for command in commands]
            yield _shared([load(peer) for peer in peers])

    return opening


def _shared(loads: Sequence[Load]) -> Load:
    """Returns a load that several processes share, and that ends when the last of them is done."""

    async def run(turns: int, steps: int) -> float:
        shares = [turns // len(loads) + (number < turns % len(loads)) for number in range(len(loads))]
        parts = [load(share, steps) for load, share in zip(loads, shares, strict=True) if share]
        return max(await asyncio.gather(*parts))

    return run
