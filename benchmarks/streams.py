"""Endless streams through the provider's service: what it keeps of them must not grow."""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal
from benchmarks.gateways import Gateway, ours
from benchmarks.peer import Peer
from benchmarks.peers.upstream import prompt
from benchmarks.processes import own_memory_bytes
from benchmarks.provider import CALLERS, load

_STREAMS = 100_000
_QUICK_STREAMS = 1_000
_DELTAS = 5
_MOST_GROWTH = 1.05


async def measure(bench: Bench) -> list[Figure]:
    """Reads the memory after a tenth of the streams, and after the last."""
    streams = _QUICK_STREAMS if bench.quick else _STREAMS
    tenth = streams // 10
    async with (
        Peer.run("upstream") as vendor,
        ours(bench.directory / "streams", vendor.word, identified=True) as gateway,
    ):
        before, began = await _after(gateway, tenth), time.perf_counter()
        after = await _after(gateway, streams - tenth)
        rate = (streams - tenth) / (time.perf_counter() - began)
    how = f"{_DELTAS} deltas each, {CALLERS} at once, each with a request_id, {rate:.0f}/s"
    goal = Goal("ratio", "<=", _MOST_GROWTH)
    return [Figure(f"memory after {streams} streams", "MB", after, f"after {tenth}", before, goal, how)]


async def _after(gateway: Gateway, streams: int) -> float:
    """Returns the service's memory in MB once `streams` more streams are over."""
    await load(gateway, prompt(_DELTAS), streamed=True, calls=streams)
    return own_memory_bytes(gateway.pid) / 1e6
