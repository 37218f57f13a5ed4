"""The drivers that every test of the log runs over, and helpers to use them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg
import pytest

from agentshell.db.database import Database
from agentshell.db.server import PostgresServer
from agentshell.log.log import Lease, Log, Record, StoredRecord
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import ids
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason

T = TypeVar("T")

WAIT = 10.0  # Seconds: the longest wait for what should come at once.
PARTITIONS = 4


class Store(Protocol):
    """A driver with this test's own store. `dedups`: it drops repeated ids. `atomic`: so are appends over topics."""

    driver: str
    url: str
    dedups: bool
    atomic: bool

    async def open(self, *, lease_seconds: float = 5.0) -> Log: ...
    async def expire(self, log: Log) -> None: ...
    async def cut(self) -> None: ...
    async def make_incompatible(self) -> None: ...
    async def kill_broker(self) -> None: ...
    async def start_broker(self) -> None: ...
    async def close(self) -> None: ...


class PostgresStore:
    """A database, or from the first `start_broker` on its own server in `data_dir`."""

    driver = "postgres"
    dedups = True
    atomic = True

    def __init__(self, url: str, data_dir: Path) -> None:
        self.url = url
        self._data_dir = data_dir
        self._server: PostgresServer | None = None
        self._opened: list[tuple[Database, PostgresLog]] = []

    async def open(self, *, lease_seconds: float = 5.0) -> Log:
        """Opens the log as a separate process would."""
        database = await Database.open(self.url, 8)
        log = await PostgresLog.open(database, lease_seconds=lease_seconds)
        self._opened.append((database, log))
        return log

    async def expire(self, log: Log) -> None:
        """Applies the retention as of a day later."""
        assert isinstance(log, PostgresLog)
        await log.apply_retention(datetime.now(UTC) + timedelta(days=1))

    async def cut(self) -> None:
        """Cuts all connections, once."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    async def make_incompatible(self) -> None:
        """Marks the store as one of a later release."""
        await self.open()
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute("INSERT INTO log.migration (number, name, digest) VALUES (9999, 'later', '')")

    async def kill_broker(self) -> None:
        """Kills the server that `start_broker` started."""
        pid = int((self._data_dir / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        assert self._server is not None
        await self._server.stop()

    async def start_broker(self) -> None:
        """Starts this store's own server."""
        self._server = await PostgresServer.start(self._data_dir)
        self.url = self._server.url

    async def close(self) -> None:
        """Closes all logs, and the server."""
        for database, log in self._opened:
            await log.close()
            await database.close()
        if self._server is not None:
            await self._server.stop()


def _iggy_store(database_url: str, data_dir: Path) -> Store:
    from tests.contract.iggy_store import IggyStore  # Its SDK is needed only with a server.

    return IggyStore(database_url, data_dir)


STORES: dict[str, Callable[[str, Path], Store]] = {"postgres": PostgresStore, "iggy": _iggy_store}
# A mark, so that no fixtures are set up for skipped tests.
NEEDS_IGGY = pytest.mark.skipif(
    not os.environ.get("AGENTSHELL_TEST_IGGY"),
    reason="AGENTSHELL_TEST_IGGY names no Iggy server, such as iggy://iggy:iggy@127.0.0.1:8090",
)


def record(name: str, key: str = "key") -> Record:
    return Record(key, ids.record_id(name), name.encode())


def names(records: Sequence[StoredRecord]) -> list[str]:
    return [stored.record.payload.decode() for stored in records]


async def read_all(log: Log, topic: str = "topic") -> list[StoredRecord]:
    records: list[StoredRecord] = []
    for partition, end in enumerate(await log.end_offsets(topic)):
        offset = 0
        while offset < end:
            batch = await log.read(topic, partition, offset, 100, 0)
            records += batch
            offset = batch[-1].offset + 1
    return records


async def poll_all(log: Log, lease: Lease, count: int) -> list[StoredRecord]:
    """Polls until there are `count` records."""
    records: list[StoredRecord] = []
    async with asyncio.timeout(WAIT):
        while len(records) < count:
            records += await log.poll(lease, 100, WAIT)
    return records


async def until_fenced(log: Log, lease: Lease) -> list[StoredRecord]:
    """Polls until the lease is lost; returns the records received until then. The log may fail meanwhile."""
    records: list[StoredRecord] = []
    async with asyncio.timeout(WAIT):
        try:
            while True:
                records += await recovered(lambda: log.poll(lease, 100, WAIT))
        except AgentShellError as error:
            if error.reason != error_pb2.ERROR_REASON_FENCED:
                raise
            return records


async def reason_of(call: Coroutine[Any, Any, object]) -> ErrorReason.ValueType:
    """Returns the reason of a call's error, which must come in time."""
    async with asyncio.timeout(2 * WAIT):
        with pytest.raises(AgentShellError) as raised:
            await call
    return raised.value.reason


async def recovered(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Retries a call until the log is available, and returns its result."""
    async with asyncio.timeout(3 * WAIT):
        while True:
            try:
                return await call()
            except AgentShellError as error:
                if error.reason != error_pb2.ERROR_REASON_LOG_UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)
