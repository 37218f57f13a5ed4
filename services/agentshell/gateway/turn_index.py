"""Where turns are in the log, and what they had come to: the gateway's table of them in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agentshell.db.database import Database
from kfm.turn.v1.turn_pb2 import Turn, TurnState

_COLUMNS = "tenant_id, turn, turns_offset, outputs_offset, request_digest, folded_offset"

# The log is the truth and this table can be made again from it, so its commits wait for no disk.
_NO_WAIT = "set_config('synchronous_commit', 'off', true)"

_CLAIM = f"""
INSERT INTO gateway.turn
    (tenant_id, turn_id, session_id, state, create_time, request_digest, turns_offset, outputs_offset, turn)
SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s FROM {_NO_WAIT}
ON CONFLICT (tenant_id, turn_id) DO NOTHING
"""  # noqa: S608 - a constant

_SAVE = f"""
INSERT INTO gateway.turn
    (tenant_id, turn_id, session_id, state, create_time, turns_offset, outputs_offset, folded_offset, turn)
SELECT changed.* FROM {_NO_WAIT}, unnest(%s::text[], %s::text[], %s::text[], %s::smallint[], %s::timestamptz[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[]) AS changed
ON CONFLICT (tenant_id, turn_id) DO UPDATE
SET state = excluded.state, turn = excluded.turn, folded_offset = excluded.folded_offset
WHERE coalesce(turn.folded_offset, -1) < excluded.folded_offset
"""  # noqa: S608 - a constant

# A claim that nothing came of within a minute was cut off, and is no turn.
_LIST = f"""
SELECT {_COLUMNS} FROM gateway.turn
WHERE tenant_id = %(tenant_id)s
    AND (%(session_id)s::text = '' OR session_id = %(session_id)s)
    AND (cardinality(%(states)s::smallint[]) = 0 OR state = ANY(%(states)s))
    AND (folded_offset IS NOT NULL OR create_time > now() - interval '60 s')
    AND (%(time)s::timestamptz IS NULL OR (create_time, turn_id) < (%(time)s, %(turn_id)s))
ORDER BY create_time DESC, turn_id DESC LIMIT %(limit)s
"""  # noqa: S608 - the columns are ours


@dataclass(slots=True)
class IndexedTurn:
    """A row: the turn as of `folded_offset`, and where the log has it. One that is only claimed has no such offset."""

    tenant_id: str
    turn: Turn
    turns_offset: int
    outputs_offset: int
    request_digest: bytes | None = None
    folded_offset: int | None = None

    @property
    def create_time(self) -> datetime:
        return self.turn.create_time.ToDatetime(UTC)


class TurnIndex:
    """The table `gateway.turn`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, database: Database) -> TurnIndex:
        """Returns the index, its table made or migrated."""
        await database.migrate("gateway", "agentshell.gateway.migrations")
        return cls(database)

    async def claim(self, row: IndexedTurn) -> IndexedTurn:
        """Claims the id of a turn that is about to be appended. Returns the row that has it: this one or one before."""
        turn = row.turn
        values = (row.tenant_id, turn.turn_id, turn.session_id, turn.state, row.create_time, row.request_digest)
        offsets = (row.turns_offset, row.outputs_offset)
        async with self._database.connection() as connection:
            claimed = await connection.execute(_CLAIM, (*values, *offsets, turn.SerializeToString()))
        return row if claimed.rowcount else await self.find(row.tenant_id, turn.turn_id) or row

    async def save(self, rows: Sequence[IndexedTurn]) -> None:
        """Writes what turns have come to. A row that is further already stays."""
        columns = zip(
            *(
                (
                    row.tenant_id,
                    row.turn.turn_id,
                    row.turn.session_id,
                    row.turn.state,
                    row.create_time,
                    row.turns_offset,
                    row.outputs_offset,
                    row.folded_offset,
                    row.turn.SerializeToString(),
                )
                for row in rows
            ),
            strict=True,
        )
        async with self._database.connection() as connection:
            await connection.execute(_SAVE, [list(column) for column in columns])

    async def find(self, tenant_id: str, turn_id: str) -> IndexedTurn | None:
        """Returns the tenant's turn, or None."""
        query = f"SELECT {_COLUMNS} FROM gateway.turn WHERE tenant_id = %s AND turn_id = %s"  # noqa: S608 - ours
        async with self._database.connection() as connection:
            row = await (await connection.execute(query, (tenant_id, turn_id))).fetchone()
        return _indexed(row) if row else None

    async def list(
        self,
        tenant_id: str,
        session_id: str,
        states: Sequence[TurnState.ValueType],
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[IndexedTurn]:
        """Returns the tenant's turns, and fresh claims, newest first, after the given (create time, id)."""
        time, turn_id = after or (None, "")
        values = {
            "tenant_id": tenant_id,
            "session_id": session_id,
            "states": list(states),
            "time": time,
            "turn_id": turn_id,
            "limit": limit,
        }
        async with self._database.connection() as connection:
            return [_indexed(row) async for row in await connection.execute(_LIST, values)]


def _indexed(row: tuple[Any, ...]) -> IndexedTurn:
    tenant_id, turn, *places = row
    return IndexedTurn(tenant_id, Turn.FromString(turn), *places)
