"""One run of the benchmarks: where it keeps things, how many rounds it does, and what it could not measure."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql
from rich.console import Console

from agentshell.db.server import PostgresServer


class Bench(NamedTuple):
    """What the parts of a run share. A quick run only shows that everything works; its figures are worth little."""

    directory: Path
    server_url: str
    console: Console
    quick: bool

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, console: Console, *, quick: bool) -> AsyncGenerator[Bench]:
        """Starts the Postgres that ours and the peers share, with a database each."""
        server = await PostgresServer.start(directory)
        try:
            yield cls(directory, server.url, console, quick)
        finally:
            await server.stop()

    def rounds(self, count: int) -> int:
        """Returns how often to do what a full run does `count` times."""
        return max(1, count // 4) if self.quick else count

    async def database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""
        async with await psycopg.AsyncConnection.connect(self.server_url, autocommit=True) as connection:
            await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.server_url.replace("/postgres?", f"/{name}?")

    def skip(self, what: str, why: str) -> None:
        """Prints what was not measured, and why."""
        self.console.print(f"[yellow]skipped: {what}: {why}[/yellow]")

    def restate(self) -> str:
        """Returns the path of Restate's server, which only whoever runs this can give; empty: there is none."""
        return os.environ.get("AGENTSHELL_BENCH_RESTATE", "")
