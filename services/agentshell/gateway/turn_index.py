"""The gateway's table of turns in Postgres: where they are in the log, and their folded state."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from agentshell.db.binary import bigints, blobs, smallints, texts, timestamps
from agentshell.db.database import Database
from kfm.turn.v1.turn_pb2 import Turn, TurnState

_COLUMNS = "tenant_id, turn, turns_offset, outputs_offset, request_digest, folded_offset"

# The log is the truth and this table can be rebuilt from it, so its commits do not wait for the disk.
_NO_WAIT = "set_config('synchronous_commit', 'off', true)"

_CLAIM = f"""
INSERT INTO gateway.turn
    (tenant_id, turn_id, session_id, state, create_time, turns_offset, outputs_offset, turn, request_digest)
SELECT claimed.* FROM {_NO_WAIT}, unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::timestamptz[],
    $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[]) AS claimed
ON CONFLICT (tenant_id, turn_id) DO NOTHING RETURNING tenant_id, turn_id
"""  # noqa: S608 - a constant
_MAX_CLAIMS = 50  # at a time; a requested turn takes at most half a megabyte

# A row folded to the same offset is replaced, so that a rebuild takes effect.
_SAVE = f"""
INSERT INTO gateway.turn
    (tenant_id, turn_id, session_id, state, create_time, turns_offset, outputs_offset, turn, folded_offset)
SELECT changed.* FROM {_NO_WAIT}, unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::timestamptz[],
    $6::bigint[], $7::bigint[], $8::bytea[], $9::bigint[]) AS changed
ON CONFLICT (tenant_id, turn_id) DO UPDATE
SET state = excluded.state, create_time = excluded.create_time, turn = excluded.turn,
    folded_offset = excluded.folded_offset
WHERE coalesce(turn.folded_offset, -1) <= excluded.folded_offset
"""  # noqa: S608 - a constant

# If the log is elsewhere, what it has committed as saved must survive a crash of this machine: nobody folds it again.
_SAVE_FOR_GOOD = _SAVE.replace("'off'", "'on'")

# One index look-up per row, whatever join a cached query plan would choose.
_FIND = f"""
SELECT found.* FROM unnest(%s::text[], %s::text[]) AS wanted (tenant_id, turn_id) CROSS JOIN LATERAL (
    SELECT {_COLUMNS} FROM gateway.turn
    WHERE turn.tenant_id = wanted.tenant_id AND turn.turn_id = wanted.turn_id LIMIT 1
) AS found
"""  # noqa: S608 - a constant

# A claim without a turn after a minute was cut off, and is no turn.
_LIST = f"""
SELECT {_COLUMNS} FROM gateway.turn
WHERE tenant_id = %(tenant_id)s
    AND (%(session_id)s::text = '' OR session_id = %(session_id)s)
    AND (cardinality(%(states)s::smallint[]) = 0 OR state = ANY(%(states)s))
    AND (folded_offset IS NOT NULL OR create_time > now() - interval '60 s')
    AND (%(time)s::timestamptz IS NULL OR (create_time, turn_id) < (%(time)s, %(turn_id)s))
ORDER BY create_time DESC, turn_id DESC LIMIT %(limit)s
"""  # noqa: S608 - the columns are ours

TurnKey = tuple[str, str]  # The tenant and the turn.


@dataclass(slots=True)
class IndexedTurn:
    """A row: the turn as of `folded_offset`, and where it is in the log. A row that is only claimed has no such offset.

    It includes every event of the turn before `projected_offset`. If it `is_new`, claimed by the call that holds it,
    the log has nothing of the turn before its end of a moment ago.
    """

    tenant_id: str
    turn: Turn
    turns_offset: int
    outputs_offset: int
    request_digest: bytes | None = None
    folded_offset: int | None = None
    projected_offset: int = 0
    is_new: bool = field(default=False, compare=False)

    @property
    def next_offset(self) -> int:
        """The first offset at which the log may have events that it does not include."""
        return max(self.projected_offset, 0 if self.folded_offset is None else self.folded_offset + 1)

    @property
    def key(self) -> TurnKey:
        return self.tenant_id, self.turn.turn_id

    @property
    def create_time(self) -> datetime:
        return self.turn.create_time.ToDatetime(UTC)


@dataclass(slots=True, eq=False)
class _Claim:
    row: IndexedTurn
    is_new: bool | None = None  # None until Postgres has been asked.


class TurnIndex:
    """The table `gateway.turn`."""

    def __init__(self, database: Database, *, has_log: bool = True) -> None:
        self._database = database
        self._claim = database.statement(_CLAIM)
        self._claims: list[_Claim] = []
        self._claiming = asyncio.Lock()
        self._save = database.statement(_SAVE if has_log else _SAVE_FOR_GOOD)

    @classmethod
    async def open(cls, database: Database, *, has_log: bool = True) -> Self:
        """Returns the index, after creating or migrating its table. `has_log`: the log is in the same database."""
        await database.migrate("gateway", "agentshell.gateway.migrations")
        return cls(database, has_log=has_log)

    async def claim(self, row: IndexedTurn) -> IndexedTurn:
        """Claims the id of a turn about to be appended. Returns the row that holds it: this one or an earlier one."""
        claim = _Claim(row)
        self._claims.append(claim)
        try:
            async with self._claiming:  # Whoever comes next claims for all who wait.
                if claim.is_new is None:
                    await self._claim_all([each for each in self._claims if each.is_new is None][:_MAX_CLAIMS])
        finally:
            self._claims.remove(claim)
        return row if claim.is_new else await self.find(*row.key) or row

    async def _claim_all(self, claims: Sequence[_Claim]) -> None:
        """Makes the claims, in the same order in all processes, to avoid deadlocks."""
        rows = sorted((claim.row for claim in claims), key=_key)
        claimed = await self._claim.run((*_shared_columns(rows), blobs([row.request_digest for row in rows])))
        values = (claimed.get_value(at, column) or b"" for at in range(claimed.ntuples) for column in range(2))
        new = {(tenant_id.decode(), turn_id.decode()) for tenant_id, turn_id in zip(values, values, strict=True)}
        for claim in claims:
            claim.is_new = claim.row.is_new = claim.row.key in new
            new.discard(claim.row.key)  # Of several claims to one turn, one wins.

    async def save(self, rows: Sequence[IndexedTurn]) -> None:
        """Saves the state of turns. A row that is already further ahead stays."""
        await self._save.run((*_shared_columns(rows), bigints([row.folded_offset for row in rows])))

    async def find(self, tenant_id: str, turn_id: str) -> IndexedTurn | None:
        """Returns the tenant's turn, or None."""
        return (await self.find_all([(tenant_id, turn_id)])).get((tenant_id, turn_id))

    async def find_all(self, keys: Sequence[TurnKey]) -> dict[TurnKey, IndexedTurn]:
        """Returns those of the turns that exist."""
        if not keys:
            return {}
        async with self._database.connection() as connection:
            rows = await (await connection.execute(_FIND, _columns(keys))).fetchall()
        return {row.key: row for row in map(_indexed, rows)}

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


def _key(row: IndexedTurn) -> TurnKey:
    return row.key


def _shared_columns(rows: Sequence[IndexedTurn]) -> list[bytes]:
    """Returns the columns that claims and saves have in common."""
    turns = [row.turn for row in rows]
    return [
        texts([row.tenant_id for row in rows]),
        texts([turn.turn_id for turn in turns]),
        texts([turn.session_id for turn in turns]),
        smallints([turn.state for turn in turns]),
        timestamps([row.create_time for row in rows]),
        bigints([row.turns_offset for row in rows]),
        bigints([row.outputs_offset for row in rows]),
        blobs([turn.SerializeToString() for turn in turns]),
    ]


def _columns(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    """Returns the rows as columns, for `unnest`."""
    return [list(column) for column in zip(*rows, strict=True)]
