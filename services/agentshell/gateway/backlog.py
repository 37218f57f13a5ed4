"""Bounds the number of open turns, so that those that are admitted get done."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

from agentshell.db.database import Database
from agentshell.mesh.config import RuntimeConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_KEPT_SECONDS = 0.5
_RETRY_DELAY = timedelta(seconds=1)
_AGAIN = f"try again in {_RETRY_DELAY.seconds} s"

# The states of the index `turn_open`. A claim without a turn after a minute was cut off, and is no turn.
_COUNT = """
SELECT tenant_id, count(*) FROM gateway.turn
WHERE state IN (1, 2, 4) AND (folded_offset IS NOT NULL OR create_time > now() - interval '60 s')
GROUP BY tenant_id
"""

_FIND = """
SELECT 1 FROM gateway.turn
WHERE tenant_id = %s AND (turn_id = %s OR (turn_id = %s AND state IN (1, 2, 4))) LIMIT 1
"""


class Backlog:
    """Counts open turns at most twice a second, and adds what this process admits in between.

    The limits are approximate: a gateway does not know what others have admitted since its last count.
    """

    def __init__(self, database: Database, config: RuntimeConfig) -> None:
        self._database = database
        self._most = config.max_open_turns
        self._most_of_tenant = config.max_open_turns_per_tenant
        self._counting = asyncio.Lock()
        self._expiry = 0.0
        self._open = Counter[str]()

    async def admit(self, tenant_id: str, turn_id: str, parent_id: str) -> None:
        """Counts one more turn of a tenant. Raises OVERLOADED if there are too many.

        A known turn passes, and so does one that an open turn waits for, since refusing it would free nothing.
        """
        await self._count()
        mine = self._open[tenant_id]
        is_full = mine >= self._most_of_tenant
        if (is_full or self._open.total() >= self._most) and not await self._is_known(tenant_id, turn_id, parent_id):
            raise _tenant_is_full(mine, self._most_of_tenant) if is_full else _mesh_is_full()
        self._open[tenant_id] += 1

    async def _count(self) -> None:
        async with self._counting:
            if time.monotonic() < self._expiry:
                return
            async with self._database.connection() as connection:
                counted = await (await connection.execute(_COUNT)).fetchall()
            self._open = Counter(dict(counted))
            self._expiry = time.monotonic() + _KEPT_SECONDS

    async def _is_known(self, tenant_id: str, turn_id: str, parent_id: str) -> bool:
        async with self._database.connection() as connection:
            cursor = await connection.execute(_FIND, (tenant_id, turn_id, parent_id))
            return await cursor.fetchone() is not None


def _tenant_is_full(count: int, most: int) -> AgentShellError:
    key = "runtime.max_open_turns_per_tenant"
    message = f"you have {count} open turns, the limit is {most} ({key!r}); end some, or {_AGAIN}"
    return _overloaded(message, {"open_count": str(count), "limit": str(most), "key": key})


def _mesh_is_full() -> AgentShellError:  # Does not disclose how many turns others have.
    key = "runtime.max_open_turns"
    return _overloaded(f"the mesh has reached its limit of open turns ({key!r}); {_AGAIN}", {"key": key})


def _overloaded(message: str, metadata: Mapping[str, str]) -> AgentShellError:
    return AgentShellError(error_pb2.ERROR_REASON_OVERLOADED, message, metadata=metadata, retry_delay=_RETRY_DELAY)
