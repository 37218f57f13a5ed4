"""`make bench`: measures everything, prints the table, and writes results.json."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import psycopg
import uvloop
from psycopg import sql
from rich.console import Console

from agentshell.db.server import PostgresServer
from benchmarks import resources, rpc, steps, turns
from benchmarks.figure import Figure, machine, to_json, to_table
from benchmarks.floor import Floor
from benchmarks.mesh import Mesh

_RESULTS = Path(__file__).with_name("results.json")
_WARN_LOAD = 0.5


async def main() -> None:
    """Runs the benchmarks, one after another: they must not share the machine."""
    console, began, load = Console(width=140), time.perf_counter(), os.getloadavg()[0]
    console.print(f"[dim]{machine()}, load average {load:.1f}; it takes about two minutes[/dim]")
    if load > _WARN_LOAD:
        console.print("[yellow]other work shares this machine: these figures are not for the record[/yellow]")
    with tempfile.TemporaryDirectory(prefix="agentshell-bench-") as name:
        directory = Path(name)
        console.print("[dim]steps and turns[/dim]")
        figures = await _with_postgres(directory)
        console.print("[dim]calls[/dim]")
        figures += await rpc.measure()
        console.print("[dim]starts[/dim]")
        figures += await resources.measure(directory)
    console.print(to_table(figures))
    _RESULTS.write_text(json.dumps(to_json(figures, load), indent=2) + "\n")
    console.print(f"[dim]{time.perf_counter() - began:.0f} s; written to benchmarks/{_RESULTS.name}[/dim]")


async def _with_postgres(directory: Path) -> list[Figure]:
    """Measures what shares one bundled Postgres: ours, the peer and the floor, each with a database of its own."""
    server = await PostgresServer.start(directory)
    try:
        urls = [await _database(server.url, name) for name in ("mesh", "dbos", "floor")]
        async with contextlib.AsyncExitStack() as stack:
            mesh = await stack.enter_async_context(Mesh.run(directory / "mesh", urls[0]))
            floor = await stack.enter_async_context(Floor.open(urls[2], directory))
            return [*await steps.measure(mesh, floor, urls[1]), *await turns.measure(mesh, floor)]
    finally:
        await server.stop()


async def _database(server_url: str, name: str) -> str:
    async with await psycopg.AsyncConnection.connect(server_url, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return server_url.replace("/postgres?", f"/{name}?")


if __name__ == "__main__":
    uvloop.run(main())
