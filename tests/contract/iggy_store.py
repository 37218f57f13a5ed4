"""The log in Iggy, on the server that AGENTSHELL_TEST_IGGY names; AGENTSHELL_TEST_IGGY_SERVER is a binary to kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agentshell.log import iggy_wire
from agentshell.log.iggy import IggyLog
from agentshell.log.log import Log
from agentshell.mesh.errors import AgentShellError

URL = "AGENTSHELL_TEST_IGGY"
SERVER = "AGENTSHELL_TEST_IGGY_SERVER"
_START_SECONDS = 20.0


class IggyStore:
    """This test's own stream, on the named server, or on its own server from the first `start_broker` on."""

    driver = "iggy"
    dedups = False
    atomic = False

    def __init__(self, _database_url: str, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._stream = f"test-{uuid.uuid4().hex}"
        self.url = f"{os.environ[URL]}#{self._stream}"  # Names the server and the stream.
        self._series = iggy_wire.SERVER_SERIES
        self._server: asyncio.subprocess.Process | None = None
        self._opened: list[IggyLog] = []

    async def open(self, *, lease_seconds: float = 5.0) -> Log:
        """Opens the log as a separate process would."""
        log = await self._open(lease_seconds)
        self._opened.append(log)
        return log

    async def expire(self, log: Log) -> None:
        """Skips the test: Iggy deletes only whole segments, of at least a mebibyte."""
        pytest.skip("Iggy cannot be made to delete a record of a test: it deletes whole segments")

    async def cut(self) -> None:
        """Cuts all connections, once."""
        for connection in _connections(urlsplit(self.url).port or 0):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    async def make_incompatible(self) -> None:
        """Makes the driver expect a later release of the server."""
        iggy_wire.SERVER_SERIES = "9999."

    async def kill_broker(self) -> None:
        """Kills the server that `start_broker` started."""
        assert self._server is not None
        self._server.kill()
        await self._server.wait()

    async def start_broker(self) -> None:
        """Starts this store's own server, always on the same port."""
        if not (binary := os.environ.get(SERVER)):
            pytest.skip(f"{SERVER} names no Iggy server to kill")
        if self._server is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.url = f"iggy://iggy:iggy@127.0.0.1:{free.getsockname()[1]}#{self._stream}"
        settings = {
            "IGGY_TCP_ADDRESS": urlsplit(self.url).netloc.partition("@")[2],
            "IGGY_ROOT_USERNAME": "iggy",
            "IGGY_ROOT_PASSWORD": "iggy",
            "IGGY_QUIC_ENABLED": "false",
            "IGGY_HTTP_ENABLED": "false",
            "IGGY_WEBSOCKET_ENABLED": "false",
            "IGGY_SHARDING_CPU_ALLOCATION": "all",
            "IGGY_SHARDING_PIN_CORES": "false",
            "IGGY_MEMORY_POOL_SIZE": "512 MiB",
        }
        with (self._data_dir / "iggy.log").open("ab") as output:
            self._server = await asyncio.create_subprocess_exec(
                binary, cwd=self._data_dir, env=os.environ | settings, stdout=output, stderr=output
            )
        async with asyncio.timeout(_START_SECONDS):
            while not await self._answers():  # noqa: ASYNC110 - the server does not signal that it listens
                await asyncio.sleep(0.05)

    async def _open(self, lease_seconds: float) -> IggyLog:
        server, _, stream = self.url.partition("#")
        return await IggyLog.open(server, stream=stream, lease_seconds=lease_seconds)

    async def _answers(self) -> bool:
        try:
            probe = await self._open(5.0)
        except AgentShellError:
            return False
        await probe.close()
        return True

    async def close(self) -> None:
        """Closes all logs, and the server."""
        iggy_wire.SERVER_SERIES = self._series
        for log in self._opened:
            await log.close()
        if self._server is not None and self._server.returncode is None:
            await self.kill_broker()


def _connections(port: int) -> Iterator[socket.socket]:
    """Yields the sockets of this process that are connected to a port."""
    for path in Path("/proc/self/fd").iterdir():
        try:
            connection = socket.socket(fileno=os.dup(int(path.name)))
        except OSError:
            continue
        with connection, contextlib.suppress(OSError, IndexError):
            if connection.getpeername()[1] == port:
                yield connection
