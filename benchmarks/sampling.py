"""Shows where a mesh's processor time goes: `.venv-bench/bin/python -m benchmarks.sampling`.

The mesh runs as `agentshell up` does, in a process whose main thread's stack is sampled after every few milliseconds of
processor time, whichever of its threads used that. What native code (grpc's core, libpq) takes between two Python
functions counts for the next of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import tool_turn, vendor
from benchmarks.contender import burst
from benchmarks.mesh import Mesh, until_it_knows
from benchmarks.processes import cpu_seconds, tree
from benchmarks.steps import CHAIN_STEPS, STEPS, TURNS
from benchmarks.turns import ask
from xenocomm import Client

_SAMPLE_SECONDS = 0.004  # The kernel samples no more often.
_LOOK_SECONDS = 0.01
_LOAD_SECONDS = 10.0
_ROWS = 24
_REPORT = "BENCH_REPORT"  # the variable that says where the mesh's process writes its samples
_COMMAND = (sys.executable, "-m", "benchmarks.sampling", "up")
_QUESTION = "What happens if the process is killed during a turn?"

Load = Callable[[Client], Awaitable[object]]


class Sampler:
    """Counts what is on the main thread's stack: `inclusive` each function once per sample, `own` the innermost."""

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._inclusive: Counter[str] = Counter()

    def begin(self, _number: int, _frame: FrameType | None) -> None:
        """Starts over."""
        self._own.clear()
        self._inclusive.clear()
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, _SAMPLE_SECONDS, _SAMPLE_SECONDS)

    def end(self, _number: int, _frame: FrameType | None) -> None:
        """Stops, and writes a line `KIND COUNT NAME` for each name seen."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        counters = (("own", self._own), ("inclusive", self._inclusive))
        lines = [f"{kind} {count} {name}\n" for kind, counter in counters for name, count in counter.items()]
        draft = Path(os.environ[_REPORT] + ".draft")
        draft.write_text("".join(lines))
        draft.rename(os.environ[_REPORT])

    def _look(self, _number: int, frame: FrameType | None) -> None:
        if frame is not None:
            self._own[_package(frame.f_code.co_filename)] += 1
        seen: set[str] = set()
        while frame is not None:
            code, frame = frame.f_code, frame.f_back
            if "/agentshell/" in code.co_filename:
                seen.add(f"{code.co_filename.rpartition('/agentshell/')[2]}:{code.co_qualname}")
        self._inclusive.update(seen)


def _package(file: str) -> str:
    """Returns a name for the package or module that a file belongs to."""
    if "/site-packages/" in file:
        return file.rpartition("/site-packages/")[2].partition("/")[0]
    if "/agentshell/" in file:
        return "agentshell/" + file.rpartition("/agentshell/")[2]
    return "kfm (generated)" if "/kfm/" in file else "python: " + file.rpartition("/")[2]


async def main() -> None:
    """Prints where the time goes under each load."""
    console = Console(width=120)
    loads: dict[str, tuple[int, Load]] = {
        f"{TURNS} turns x {STEPS} steps": (TURNS * STEPS, lambda client: burst(client, TURNS, STEPS)),
        f"a chain of {CHAIN_STEPS} steps": (CHAIN_STEPS, lambda client: burst(client, 1, CHAIN_STEPS)),
        "a turn of the guide": (1, lambda client: ask(client, _QUESTION)),
    }
    with tempfile.TemporaryDirectory(prefix="agentshell-profile-") as name:
        os.environ[_REPORT] = f"{name}/report"
        async with Mesh.run(Path(name), command=_COMMAND) as mesh, mesh.client() as client:
            await until_it_knows(client)
            for title, (units, load) in loads.items():
                await _profile(console, mesh, client, title, units, load)
        async with vendor.run() as model:
            environment = tool_turn.environment(Path(name) / "packs", model)
            async with Mesh.run(Path(name), command=_COMMAND, environment=environment) as mesh, mesh.client() as client:
                await _profile(console, mesh, client, "a turn of model, tool, model", 1, tool_turn.run)


async def _profile(console: Console, mesh: Mesh, client: Client, title: str, units: int, load: Load) -> None:
    report = Path(os.environ[_REPORT])
    await load(client)
    processes = {"mesh": [mesh.pid], "Postgres": tree(mesh.pid)[1:], "client": [os.getpid()]}
    os.kill(mesh.pid, signal.SIGUSR1)
    before = {who: cpu_seconds(pids) for who, pids in processes.items()}
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < _LOAD_SECONDS:
        await load(client)
        done += units
    seconds = time.perf_counter() - began
    used = {who: cpu_seconds(pids) - before[who] for who, pids in processes.items()}
    os.kill(mesh.pid, signal.SIGUSR2)
    while not report.exists():  # noqa: ASYNC110, ASYNC240 - another process's, and small
        await asyncio.sleep(_LOOK_SECONDS)
    console.print(f"\n[bold]{title}[/bold]: {done / seconds:.0f}/s; processor time of each, in us:", highlight=False)
    console.print(", ".join(f"{who} {cpu / done * 1e6:.0f}" for who, cpu in used.items()), highlight=False)
    console.print(_tables(report.read_text(), used["mesh"] / done * 1e6))  # noqa: ASYNC240
    report.unlink()  # noqa: ASYNC240


def _tables(report: str, microseconds: float) -> Table:
    """Returns both counts side by side, as microseconds of the mesh's processor time."""
    counts: dict[str, Counter[str]] = {"own": Counter(), "inclusive": Counter()}
    for line in report.splitlines():
        kind, count, name = line.split(" ", 2)
        counts[kind][name] = int(count)
    scale = microseconds / counts["own"].total()
    both = Table.grid(padding=(0, 4))
    tables: list[Table] = []
    for title, counter in (("within", counts["own"]), ("within it and what it calls", counts["inclusive"])):
        table = Table(title, "us", box=None, header_style="dim", pad_edge=False)
        for name, count in counter.most_common(_ROWS):
            table.add_row(name, f"{count * scale:.0f}")
        tables.append(table)
    both.add_row(*tables)
    return both


def _serve() -> None:
    """Runs `agentshell`, with a sampler that SIGUSR1 starts and SIGUSR2 stops."""
    from agentshell.cli import main

    sampler = Sampler()
    signal.signal(signal.SIGUSR1, sampler.begin)
    signal.signal(signal.SIGUSR2, sampler.end)
    main()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _serve()
    else:
        uvloop.run(main())
