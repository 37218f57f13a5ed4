"""A call of a pack's tool, in a sandbox with fresh state, beside the same function in a bare subprocess per call.

If they are installed, also beside a subprocess under bubblewrap, and beside pydantic-monty's pool of interpreters.

The callers and the pool of workers are in this process; `rpc` measures what a ToolService adds.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from agentshell.mesh.config import ToolConfig
from agentshell.tool.egress import Egress
from agentshell.tool.grant import Grant
from agentshell.tool.sandbox import image
from agentshell.tool.sandbox.limits import Limits
from agentshell.tool.sandbox.sandbox import Sandbox
from agentshell.tool.sandbox.tier import request
from agentshell.tool.sandbox.wasm import WasmTier
from agentshell.tool.sandbox.worker import Worker
from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal, median, percentile
from benchmarks.processes import memory_bytes
from kfm.personality.v1 import personality_service_pb2 as pb

_CALLS = 400
_STARTS = 12
_PEER_CALLS = 60
_CALLERS = 8
_PAUSE_SECONDS = 0.01
_CANCELS = 12
_SETTINGS = "new interpreter each call; arguments and result as JSON; latency of calls 10 ms apart"
_SYSTEM_PYTHON = "/usr/bin/python3"
_SOURCE = """
def weigh(words: list[str]) -> dict[str, int]:
    return {word: len(word) for word in words}
"""
_PLAIN = "def weigh(words):\n    return {word: len(word) for word in words}"  # Not all of them know these types.
_ENDLESS = """
import host
def weigh(words):
    host.progress("begun")
    while True: pass
"""
_WORDS = ["soup", "onion", "salt"] * 10
_BARE = f"import json, sys\n{_SOURCE}\nprint(json.dumps(weigh(json.load(sys.stdin))))"

Call = Callable[[], Awaitable[object]]


async def measure(bench: Bench) -> list[Figure]:
    """Makes the image if there is none, and calls one tool in each way."""
    await image.ensure(image.default_directory(), bench.console.print)
    calls, peer_calls = bench.rounds(_CALLS), bench.rounds(_PEER_CALLS)
    bare = [await _seconds(_subprocess) for _ in range(peer_calls)]
    bare_rate = await _rate(_subprocess, peer_calls)
    async with _sandbox() as sandbox:
        await _weigh(sandbox)
        fresh = [await _lone_seconds(lambda: _weigh(sandbox)) for _ in range(calls)]
        rate = await _rate(lambda: _weigh(sandbox), calls)
        cancels = [await _cancel_seconds(sandbox) for _ in range(bench.rounds(_CANCELS))]
    starts, memory = await _starts(bench.rounds(_STARTS))
    name = "bare subprocess"
    figures = [
        _milliseconds("pack tool, p50", median(fresh), name, median(bare), Goal("ours", "<=", 3)),
        _milliseconds("pack tool, p99", percentile(fresh, 99), name, percentile(bare, 99)),
        Figure(f"pack tool, {_CALLERS} callers", "1/s", rate, name, bare_rate, settings=_SETTINGS),
        _milliseconds("pack tool, cold start and call", median(starts), name, median(bare)),
        _milliseconds("pack tool, cancelled to killed", median(cancels), goal=Goal("ours", "<=", 100)),
        Figure("pack tool, memory of a worker", "MiB", memory / 2**20, settings="PSS, after a call"),
    ]
    return figures + await _peers(bench, fresh) + await _native(bench)


async def _peers(bench: Bench, ours: list[float]) -> list[Figure]:
    """Returns our figures beside those of the peers that are installed."""
    calls = bench.rounds(_PEER_CALLS)
    taken = {"bubblewrap": [await _seconds(_bubblewrap) for _ in range(calls)] if shutil.which("bwrap") else []}
    taken["pydantic-monty"] = await asyncio.to_thread(_monty, bench.rounds(_CALLS))
    figures: list[Figure] = []
    for name, theirs in taken.items():
        if not theirs:
            bench.skip(f"pack tool beside {name}", "it is not installed")
            continue
        figures.append(_milliseconds(f"pack tool, p50, beside {name}", median(ours), name, median(theirs)))
        p99 = percentile(ours, 99), percentile(theirs, 99)
        figures.append(_milliseconds(f"pack tool, p99, beside {name}", p99[0], name, p99[1]))
    return figures


def _monty(count: int) -> list[float]:
    """Returns the seconds of calls, each in a new interpreter of a subset of Python; empty if it is not installed."""
    try:
        monty: Any = importlib.import_module("pydantic_monty")
    except ImportError:
        return []
    taken: list[float] = []
    with monty.Monty() as pool:
        for _ in range(count):
            time.sleep(_PAUSE_SECONDS)
            began = time.perf_counter()
            with pool.checkout() as session:
                session.feed_run(f"{_PLAIN}\nweigh(words)", inputs={"words": _WORDS})
            taken.append(time.perf_counter() - began)
    return taken


async def _native(bench: Bench) -> list[Figure]:
    if not shutil.which("bwrap") or not shutil.which(_SYSTEM_PYTHON):
        bench.skip("pack tool, native tier", f"bubblewrap or {_SYSTEM_PYTHON} is not installed")
        return []
    async with _sandbox(native_python=_SYSTEM_PYTHON) as sandbox:
        await _weigh(sandbox, tier=pb.SANDBOX_TIER_NATIVE)
        calls = range(bench.rounds(_PEER_CALLS))
        taken = [await _seconds(lambda: _weigh(sandbox, tier=pb.SANDBOX_TIER_NATIVE)) for _ in calls]
    return [_milliseconds("pack tool, native tier, p50", median(taken))]


async def _starts(count: int) -> tuple[list[float], float]:
    """Returns the seconds from nothing to a worker's first answer, and the median memory of a worker then."""
    limits = Limits.of(ToolConfig())
    tier = WasmTier(limits, image.default_directory())
    await tier.open(lambda _said: None)
    taken: list[float] = []
    memory: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        worker = await tier.start()
        await _answer(worker, limits)
        taken.append(time.perf_counter() - began)
        memory.append(memory_bytes([worker.pid]))
        await worker.kill()
    return taken, median(memory)


async def _answer(worker: Worker, limits: Limits) -> None:
    async def refuse(_name: str, _arguments: str) -> dict[str, Any]:
        return {}

    call = {"files": {"tools/w.py": _SOURCE}, "module": "tools.w", "function": "weigh", "arguments": {"words": _WORDS}}
    await worker.call(request(call, limits), refuse)


async def _cancel_seconds(sandbox: Sandbox) -> float:
    begun = asyncio.Event()
    call = asyncio.create_task(_weigh(sandbox, _ENDLESS, tell=lambda _said: begun.set()))
    await begun.wait()
    began = time.perf_counter()
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call  # Returns once the process is gone.
    return time.perf_counter() - began


async def _weigh(
    sandbox: Sandbox,
    source: str = _SOURCE,
    tier: pb.SandboxTier.ValueType = pb.SANDBOX_TIER_WASM,
    tell: Callable[[str], None] = lambda _said: None,
) -> None:
    code = pb.ToolCode(files={"tools/w.py": source}, tier=tier)
    function = pb.ToolFunction(module="tools.w")
    function.tool.name = "weigh"
    grant = Grant(sandbox.config, "bench", "bench", "weigh", ())
    await sandbox.run(grant, code, function, {"words": _WORDS}, tell)


async def _subprocess(*before: str) -> None:
    command = (*before, sys.executable, "-I", "-c", _BARE)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env={})
    said, _ = await process.communicate(json.dumps(_WORDS).encode())
    json.loads(said)


async def _bubblewrap() -> None:
    await _subprocess(shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/")


async def _rate(call: Call, count: int) -> float:
    async def call_on() -> None:
        for _ in range(max(1, count // _CALLERS)):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(call_on() for _ in range(_CALLERS)))
    return max(1, count // _CALLERS) * _CALLERS / (time.perf_counter() - began)


async def _lone_seconds(call: Call) -> float:
    """Returns the seconds of a call some time after the last, as in a turn, where models think in between."""
    await asyncio.sleep(_PAUSE_SECONDS)
    return await _seconds(call)


async def _seconds(call: Call) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


@asynccontextmanager
async def _sandbox(native_python: str = "") -> AsyncGenerator[Sandbox]:
    sandbox = Sandbox.of(Egress(ToolConfig(max_workers=2, native_python=native_python), {}))
    try:
        yield sandbox
    finally:
        await sandbox.close()


def _milliseconds(
    name: str, ours: float, peer_name: str = "", peer: float | None = None, goal: Goal | None = None
) -> Figure:
    return Figure(name, "ms", ours * 1e3, peer_name, None if peer is None else peer * 1e3, goal, _SETTINGS)
