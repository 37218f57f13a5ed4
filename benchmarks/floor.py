"""What no engine on this machine can be faster than: its disk, and one record a step in one commit."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from agentshell.db.database import Database
from agentshell.log.log import Record, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import ids
from benchmarks.figure import median

DURABLE = "fsync on, synchronous_commit on"
PRODUCERS = 50

_WRITES = 100
_BLOCK_BYTES = 4096
_TOPIC = "bench.records"
_PARTITIONS = 8
_PAYLOAD_BYTES = 256
_RECORDS_EACH = 40
_RELAY = "bench.relay"
_RELAYS = 100
_RELAY_SECONDS = 5.0
_APART_SECONDS = 0.005


class Floor:
    """Our log alone, in this process: no turn, no gRPC, no decision. And the disk alone, under `directory`."""

    def __init__(self, log: PostgresLog, directory: Path) -> None:
        self._log = log
        self._directory = directory

    @classmethod
    @asynccontextmanager
    async def open(cls, database_url: str, directory: Path) -> AsyncGenerator[Floor]:
        """Opens the log in a database of its own."""
        database = await Database.open(database_url, max_connections=4)
        log = await PostgresLog.open(database)
        try:
            await log.ensure_topic(Topic(_TOPIC, _PARTITIONS))
            await log.ensure_topic(Topic(_RELAY, 1, durability="relaxed"))
            yield cls(log, directory)
        finally:
            await log.close()
            await database.close()

    def disk_milliseconds(self) -> float:
        """Returns the median time of a 4 kB append with fdatasync."""
        times: list[float] = []
        file = os.open(self._directory / "probe", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            for _ in range(_WRITES):
                began = time.perf_counter()
                os.write(file, bytes(_BLOCK_BYTES))
                os.fdatasync(file)
                times.append(time.perf_counter() - began)
        finally:
            os.close(file)
        return median(times) * 1e3

    async def appends_per_second(self) -> float:
        """Returns the rate of 50 producers, each of which appends a record when its last one is on disk."""

        async def produce() -> None:
            for _ in range(_RECORDS_EACH):
                await self._append()

        began = time.perf_counter()
        await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
        return PRODUCERS * _RECORDS_EACH / (time.perf_counter() - began)

    async def append_milliseconds(self) -> float:
        """Returns the median time of an append by one producer."""
        times: list[float] = []
        for _ in range(_RECORDS_EACH):
            began = time.perf_counter()
            await self._append()
            times.append(time.perf_counter() - began)
        return median(times) * 1e3

    async def relay_milliseconds(self) -> float:
        """Returns the median time from appending a record that need not be on disk to its reader having it."""
        times: list[float] = []
        [offset] = await self._log.end_offsets(_RELAY)
        for number in range(offset, offset + _RELAYS):
            reader = asyncio.create_task(self._log.read(_RELAY, 0, number, 1, _RELAY_SECONDS))
            await asyncio.sleep(_APART_SECONDS)  # By then it is waiting.
            began = time.perf_counter()
            await self._append(_RELAY)
            await reader
            times.append(time.perf_counter() - began)
        return median(times) * 1e3

    async def _append(self, topic: str = _TOPIC) -> None:
        name = ids.ulid()
        await self._log.append(topic, [Record(name, ids.record_id(name), bytes(_PAYLOAD_BYTES))])
