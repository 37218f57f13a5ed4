"""A real Redis: the one that AGENTSHELL_TEST_REDIS names, or this test's own `redis-server`."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from tests.ports import free_port

WAIT_SECONDS = 20


class RedisServer:
    """A server that a test can kill and restart."""

    def __init__(self, program: str, directory: Path) -> None:
        self._program = program
        self._directory = directory
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the server with what its append-only file has."""
        arguments = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        arguments += ["--appendonly", "yes", "--appendfsync", "always"]
        self._process = await asyncio.create_subprocess_exec(
            self._program, *arguments, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(WAIT_SECONDS), Redis.from_url(self.url) as redis:
            while True:
                try:
                    await redis.ping()
                    return
                except RedisError:  # It is loading, or not up yet.
                    await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """Kills the server."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


def program() -> str:
    """Returns the path of the server's program; skips the test if there is none."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        pytest.skip("no redis-server is on PATH")
    return found


def url() -> str | None:
    """Returns the URL of the server given to this run, if any."""
    return os.environ.get("AGENTSHELL_TEST_REDIS")
