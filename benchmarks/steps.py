"""Durable steps that do nothing: many turns at once, and one after another."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.contender import Contender, Load, contenders
from benchmarks.figure import Figure, Goal, median
from benchmarks.floor import DURABLE, PRODUCERS, Floor
from benchmarks.processes import cpu_seconds, tree

TURNS = 50
STEPS = 5
CHAIN_STEPS = 20

_ROUNDS = 3
_BURSTS = 5
_CHAINS = 10
_SETTLE_SECONDS = 0.3  # So that what a load leaves behind (history, index) counts for that load.
_RATE = f"durable steps, {TURNS} turns x {STEPS}"
_FLOOR_RATE = f"one append a step, {PRODUCERS} producers"
_STEP = f"sequential step, a chain of {CHAIN_STEPS}"
_SETTINGS = {
    "DBOS": f"{DURABLE}; defaults",
    "LangGraph": f"{DURABLE}; AsyncPostgresSaver over a pool of 20, durability=sync",
    "Restate": "log-server's RocksDB, WAL fsync on; defaults, one node",
}
_RATE_GOALS = {"DBOS": Goal("ratio", ">=", 10), "LangGraph": Goal("ratio", ">=", 4)}
_STEP_GOALS = {
    "DBOS": Goal("ratio", "<=", 0.4),
    "LangGraph": Goal("ratio", "<=", 0.8),
    "Restate": Goal("ratio", "<=", 0.8),
}


class _Cost(NamedTuple):
    """What a load took: from start to end, and in processor time of all processes, with what it left behind."""

    seconds: float
    cpu_seconds: float


@dataclass(slots=True)
class _Readings:
    """A contender's readings over all rounds; chains are in seconds."""

    bursts: list[_Cost] = field(default_factory=list[_Cost])
    chains: list[float] = field(default_factory=list[float])


class _Standing(NamedTuple):
    contender: Contender
    readings: _Readings


async def measure(bench: Bench) -> list[Figure]:
    """Runs all in turn, several times over. Nothing else runs meanwhile."""
    readings: dict[str, _Readings] = defaultdict(_Readings)
    disk: list[float] = []
    appends: list[float] = []
    rates: list[float] = []
    everyone, floor_url = await contenders(bench), await bench.database("floor")
    for _ in range(bench.rounds(_ROUNDS)):
        for contender in everyone:
            async with contender.open() as load:
                await _read(load, readings[contender.name], bench)
        async with Floor.open(floor_url, bench.directory) as floor:
            disk.append(floor.disk_milliseconds())
            appends.append(await floor.append_milliseconds())
            rates.append(await floor.appends_per_second())
    standings = [_Standing(contender, readings[contender.name]) for contender in everyone]
    ours = [standing for standing in standings if standing.contender.family == "ours"]
    peers = [standing for standing in standings if standing.contender.family != "ours"]
    return [
        Figure("disk, 4 kB append", "ms", median(disk), settings="fdatasync; the physical limit"),
        *_many(ours, peers, median(rates)),
        *_one(ours, [peer for peer in peers if peer.contender.processes == 1], median(appends)),
    ]


async def _read(load: Load, readings: _Readings, bench: Bench) -> None:
    for turns, steps in ((TURNS, STEPS), (1, CHAIN_STEPS)):  # Warms up connections, prepared statements, code.
        await load(turns, steps)
    await asyncio.sleep(_SETTLE_SECONDS)
    pids = tree(os.getpid())
    for _ in range(bench.rounds(_BURSTS)):
        before = cpu_seconds(pids)
        seconds = await load(TURNS, STEPS)
        await asyncio.sleep(_SETTLE_SECONDS)
        readings.bursts.append(_Cost(seconds, cpu_seconds(pids) - before))
    readings.chains += [await load(1, CHAIN_STEPS) for _ in range(bench.rounds(_CHAINS))]


def _many(ours: Sequence[_Standing], peers: Sequence[_Standing], floor: float) -> list[Figure]:
    """Compares rates: ours in one process, and in its fastest layout, with all others."""
    default, fastest = ours[0], max(ours, key=_rate)
    shown = [default] if fastest is default else [default, fastest]
    best, figures = _best(peers), list[Figure]()
    for standing in shown:
        name = f"{_RATE}, {standing.contender.name}"
        for peer in peers:
            family = peer.contender.family
            goal = _RATE_GOALS.get(family) if peer in best else None
            settings = _SETTINGS[family]
            figures.append(Figure(name, "1/s", _rate(standing), peer.contender.name, _rate(peer), goal, settings))
        figures.append(Figure(name, "1/s", _rate(standing), _FLOOR_RATE, floor, settings=DURABLE))
    for other in ours[1:]:
        name, alone = f"{_RATE}, {other.contender.name}", default.contender.name
        figures.append(Figure(name, "1/s", _rate(other), f"ours, {alone}", _rate(default), settings=DURABLE))
    for peer in best:
        name, other = f"{_RATE}, CPU of all processes", peer.contender.name
        figures.append(Figure(name, "us", _cpu(default), other, _cpu(peer), settings="a step"))
    return figures


def _one(ours: Sequence[_Standing], peers: Sequence[_Standing], append: float) -> list[Figure]:
    """Compares sequential steps: ours in one process with all others."""
    default, best = ours[0], _best(peers, fastest_step=True)
    step, figures = _step(default), list[Figure]()
    for peer in peers:
        family = peer.contender.family
        goal = _STEP_GOALS[family] if peer in best else None
        figures.append(Figure(_STEP, "ms", step, peer.contender.name, _step(peer), goal, _SETTINGS[family]))
    figures.append(Figure(_STEP, "ms", step, "one append", append, settings=DURABLE))
    for other in ours[1:]:
        name, alone = f"{_STEP}, {other.contender.name}", default.contender.name
        figures.append(Figure(name, "ms", _step(other), f"ours, {alone}", step, settings=DURABLE))
    return figures


def _best(peers: Sequence[_Standing], *, fastest_step: bool = False) -> list[_Standing]:
    """Returns the best of each family, with which its goal is compared."""
    families = dict.fromkeys(peer.contender.family for peer in peers)
    return [
        max(
            (peer for peer in peers if peer.contender.family == family),
            key=lambda peer: -_step(peer) if fastest_step else _rate(peer),
        )
        for family in families
    ]


def _rate(standing: _Standing) -> float:
    """Returns steps per second."""
    return TURNS * STEPS / median([cost.seconds for cost in standing.readings.bursts])


def _cpu(standing: _Standing) -> float:
    """Returns microseconds of processor time per step."""
    return median([cost.cpu_seconds for cost in standing.readings.bursts]) / (TURNS * STEPS) * 1e6


def _step(standing: _Standing) -> float:
    """Returns milliseconds per step of a chain."""
    return median(standing.readings.chains) / CHAIN_STEPS * 1e3
