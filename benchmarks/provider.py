"""What a gateway, ours or a peer's, adds to a model call, over one upstream that costs next to nothing.

Each gateway is one process and, while it is measured, has the machine to itself except for the client and the upstream.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal, median, percentile
from benchmarks.gateways import Gateway, contenders, upstream
from benchmarks.peer import Peer
from benchmarks.peers.upstream import prompt
from benchmarks.processes import cpu_seconds, memory_bytes, tree

DELTAS = 20
CALLERS = 32
_ROUNDS = 5
_ROUND_SECONDS = 2.0
_WARM_UP_CALLS = 5  # of each caller
# How many call at once, and with what prompt: deltas are far enough apart that the first comes alone.
_PACED = {1: prompt(5, 5), 8: prompt(DELTAS, 5)}
_PACED_STREAMS = 60  # per round
_KINDS = {True: f"StreamGenerate of {DELTAS} deltas", False: "Generate"}
_NAMES = {
    "bare": "bare grpc.aio + HTTP",
    "LiteLLM": "LiteLLM proxy",
    "Portkey": "Portkey",
}
_CPU_GOALS = {"bare": Goal("ours", "<=", 1.2), "LiteLLM": Goal("ratio", "<=", 1 / 6)}
_SETTINGS = (
    "1 process each, prompt of 1 KB; ours: authentication, budget, breaker, cost, telemetry; "
    "LiteLLM: authentication and cost, no database; Portkey: neither"
)


class _Reading(NamedTuple):
    calls_per_second: float
    cpu_milliseconds: float  # of the gateway's first process, per call
    all_cpu_milliseconds: float  # including what it started, such as a Postgres


class _Readings(NamedTuple):
    """One gateway's readings, one per round; `firsts`: times to the first delta, by how many call at once."""

    loads: Mapping[bool, list[_Reading]]
    firsts: Mapping[int, list[float]]
    memory: list[float]


async def measure(bench: Bench) -> list[Figure]:
    """Calls all gateways in turn."""
    async with Peer.run("upstream") as vendor, AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(each.open()) for each in contenders(bench, vendor.word)]
        gateways = [upstream(vendor), *opened]
        readings = {
            gateway.name: _Readings({True: [], False: []}, {callers: [] for callers in _PACED}, [])
            for gateway in gateways
        }
        for gateway in gateways:
            for streamed in _KINDS:
                await load(gateway, prompt(DELTAS), streamed=streamed, calls=CALLERS * _WARM_UP_CALLS)
        for _ in range(bench.rounds(_ROUNDS)):
            for gateway in gateways:
                await _read(gateway, readings[gateway.name])
    return _figures(readings)


async def load(
    gateway: Gateway, text: str, *, streamed: bool, calls: float = math.inf, seconds: float = math.inf
) -> int:
    """Makes `calls` calls, or as many as begin within `seconds`, CALLERS at once; returns how many."""
    begun, end = 0, time.perf_counter() + seconds

    async def call_on() -> None:
        nonlocal begun
        while begun < calls and time.perf_counter() < end:
            begun += 1
            await _whole(gateway, text, streamed=streamed)

    await asyncio.gather(*(call_on() for _ in range(CALLERS)))
    return begun


async def _whole(gateway: Gateway, text: str, *, streamed: bool) -> float:
    """Makes a call, and returns the seconds to its first delta."""
    began, first, words = time.perf_counter(), 0.0, 0
    async with aclosing(gateway.call(text, streamed)) as answer:
        async for count in answer:
            words += count
            first = first or (time.perf_counter() - began if count else 0.0)
    expected = int(text.split()[0])
    if words != expected:
        raise RuntimeError(f"{gateway.name} answered with {words} deltas instead of {expected}")
    return first


async def _read(gateway: Gateway, readings: _Readings) -> None:
    for streamed, loads in readings.loads.items():
        before, began = _cpu_seconds(gateway), time.perf_counter()
        calls = await load(gateway, prompt(DELTAS), streamed=streamed, seconds=_ROUND_SECONDS)
        seconds = time.perf_counter() - began
        own, whole = (now - then for now, then in zip(_cpu_seconds(gateway), before, strict=True))
        loads.append(_Reading(calls / seconds, own / calls * 1e3, whole / calls * 1e3))
    for callers, firsts in readings.firsts.items():
        text, streams = _PACED[callers], _PACED_STREAMS // callers
        found = await asyncio.gather(*(_firsts(gateway, text, streams) for _ in range(callers)))
        firsts.extend(seconds for each in found for seconds in each)
    readings.memory.append(memory_bytes([gateway.pid]) / 1e6)


def _cpu_seconds(gateway: Gateway) -> tuple[float, float]:
    """Returns the processor time of its first process, and of that and all its descendants."""
    return cpu_seconds([gateway.pid]), cpu_seconds(tree(gateway.pid))


async def _firsts(gateway: Gateway, text: str, streams: int) -> list[float]:
    return [await _whole(gateway, text, streamed=True) for _ in range(streams)]


def _figures(readings: Mapping[str, _Readings]) -> list[Figure]:
    figures: list[Figure] = []
    itself, ours = readings["upstream"], readings["ours"]
    for name, title in _NAMES.items():
        if name not in readings:
            continue
        peer = readings[name]
        for streamed, kind in _KINDS.items():
            own, theirs = _median(ours.loads[streamed]), _median(peer.loads[streamed])
            figures += [
                Figure(f"{kind}, {CALLERS} callers", "1/s", own[0], title, theirs[0], settings=_SETTINGS),
                Figure(f"{kind}, CPU", "ms", own[1], title, theirs[1], _CPU_GOALS.get(name), _SETTINGS),
            ]
        for callers in itself.firsts:
            direct = median(itself.firsts[callers])
            for percent in (50, 99):
                own, theirs = (percentile(each.firsts[callers], percent) - direct for each in (ours, peer))
                goal = Goal("ours", "<=", 5) if (name, percent) == ("bare", 99) else None
                what = f"first delta over the upstream's, {callers} at once, p{percent}"
                figures.append(Figure(what, "ms", own * 1e3, title, theirs * 1e3, goal, _SETTINGS))
        figures.append(Figure("memory of a gateway", "MB", median(ours.memory), title, median(peer.memory)))
    for streamed, kind in _KINDS.items():
        own = _median(ours.loads[streamed])
        figures.append(Figure(f"{kind}, CPU with its Postgres", "ms", own[2], "without", own[1], settings=_SETTINGS))
        idle = _median(itself.loads[streamed])
        figures.append(Figure(f"{kind}, CPU of the upstream", "ms", idle[1], settings=_SETTINGS))
    return figures


def _median(readings: list[_Reading]) -> _Reading:
    return _Reading(*(median(values) for values in zip(*readings, strict=True)))
