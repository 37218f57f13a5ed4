"""Removes what has expired: records, and answers to requests. No read depends on it: reads ignore what has expired."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from prometheus_client import Counter

from agentshell.db.database import Database
from agentshell.memory.stores import change, once
from agentshell.memory.stores.store import Store
from agentshell.mesh.errors import AgentShellError

SWEPT_RECORDS: Final = Counter("agentshell_memory_swept_records_total", "Expired records deleted.")
# One transaction per batch, so that nobody waits long for it.
BATCH_RECORDS = 1000

_log = structlog.get_logger("agentshell.memory")


class Sweeper:
    """Sweeps at an interval. Any number of processes may: none waits for what another one removes."""

    def __init__(self, database: Database, store: Store, interval_seconds: float) -> None:
        self._database = database
        self._store = store
        self._interval_seconds = interval_seconds

    async def sweep(self) -> int:
        """Removes everything that has expired, and returns how many records it removed."""
        total = 0
        while True:
            swept = await self._store.sweep(BATCH_RECORDS)
            SWEPT_RECORDS.inc(swept)
            total += swept
            if swept < BATCH_RECORDS:
                break
        async with self._database.connection() as connection:
            await change.sweep(connection)
        await once.sweep(self._database)
        return total

    async def run(self) -> None:
        """Sweeps until it is cancelled."""
        while True:
            try:
                await self.sweep()
            except AgentShellError as error:
                _log.warning("expired records stay for now", reason=error.name, detail=error.message)
            await asyncio.sleep(self._interval_seconds)
