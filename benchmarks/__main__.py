"""`make bench`: measures everything, prints the table, and writes results.json.

    python -m benchmarks [--quick] [PART ...]

A quick run, or a run of only some parts, writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import uvloop
from rich.console import Console

from benchmarks import (
    iggy,
    memory,
    packs,
    provider,
    resources,
    resume,
    rpc,
    steps,
    stream,
    streams,
    tool_call,
    tool_turn,
    turns,
)
from benchmarks.bench import Bench
from benchmarks.figure import Figure, machine, to_json, to_table

_RESULTS = Path(__file__).with_name("results.json")
_WARN_LOAD = 0.5

_PARTS: Mapping[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    "steps": steps.measure,
    "turns": turns.measure,
    "tool_turn": tool_turn.measure,
    "tool_call": tool_call.measure,
    "packs": packs.measure,
    "stream": stream.measure,
    "resume": resume.measure,
    "rpc": rpc.measure,
    "provider": provider.measure,
    "memory": memory.measure,
    "streams": streams.measure,
    "iggy": iggy.measure,
    "resources": resources.measure,
}


async def main(parts: Sequence[str], *, quick: bool) -> None:
    """Runs the parts one after another: they must not share the machine."""
    console, began, load = Console(width=160), time.perf_counter(), os.getloadavg()[0]
    console.print(f"[dim]{machine()}, load average {load:.1f}[/dim]")
    if load > _WARN_LOAD:
        console.print("[yellow]other work shares this machine: these figures are not for the record[/yellow]")
    figures: list[Figure] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="agentshell-bench-") as name:
        async with Bench.open(Path(name), console, quick=quick) as bench:
            for part in parts or _PARTS:
                console.print(f"[dim]{part}[/dim]")
                try:
                    figures += await _PARTS[part](bench)
                except Exception:  # The other parts' figures are still worth having.
                    failed.append(part)
                    console.print_exception()
    console.print(to_table(figures))
    if failed:
        raise SystemExit(f"without figures, for the reasons above: {', '.join(failed)}")
    if not quick and not parts:
        _RESULTS.write_text(json.dumps(to_json(figures, load), indent=2) + "\n")
        console.print(f"[dim]written to benchmarks/{_RESULTS.name}[/dim]")
    console.print(f"[dim]{time.perf_counter() - began:.0f} s[/dim]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures Agent Shell beside its peers.")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it run?")
    parser.add_argument("parts", nargs="*", choices=[*_PARTS, []], metavar="PART", help=", ".join(_PARTS))
    arguments = parser.parse_args()
    uvloop.run(main(arguments.parts, quick=arguments.quick))
