"""Keeps turns that wait for somebody out of memory, and lets the log move on, for as long as it takes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from agentshell.db.database import Database
from agentshell.runtime.open_turn import OpenTurn
from agentshell.turn.state import Fold
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import TurnRequested
from kfm.turn.v1.turn_pb2 import Turn

_LIST = "SELECT turn_id, wake_time FROM runtime.parked_turn WHERE partition = ANY(%s)"

_LOAD = "SELECT partition, folded_offset, turn, requested, header FROM runtime.parked_turn WHERE turn_id = %s"

# An owner that lost its partition may write late: a newer row stays.
_SAVE = """
INSERT INTO runtime.parked_turn AS p (turn_id, partition, folded_offset, wake_time, turn, requested, header)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (turn_id) DO UPDATE
SET folded_offset = excluded.folded_offset, wake_time = excluded.wake_time,
    turn = excluded.turn, header = excluded.header
WHERE p.folded_offset < excluded.folded_offset
"""

_FORGET = "DELETE FROM runtime.parked_turn WHERE turn_id = %s"


class Parking:
    """Parked turns in Postgres. Raises DATABASE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        """Creates or migrates the schema."""
        await self._database.migrate("runtime", "agentshell.runtime.migrations")

    async def list(self, partitions: Collection[int]) -> dict[str, datetime]:
        """Returns the parked turns of some partitions, with the time to look at each again."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(_LIST, (list(partitions),))
            return dict(await cursor.fetchall())

    async def save(self, parked: OpenTurn) -> datetime:
        """Parks a waiting turn. Returns when to look at it again."""
        wake_time = datetime.fromtimestamp(parked.next_time(), UTC)
        # All of it now: the turn may go on while this waits for a connection.
        messages = (each.SerializeToString() for each in (parked.turn, parked.requested, parked.header))
        row = (parked.turn.turn_id, parked.partition, parked.folded_offset, wake_time, *messages)
        async with self._database.connection() as connection:
            await connection.execute(_SAVE, row)
        return wake_time

    async def load(self, turn_id: str) -> OpenTurn | None:
        """Returns a parked turn, or None if it is over. Loading leaves it parked."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(_LOAD, (turn_id,))
            row = await cursor.fetchone()
        if row is None:
            return None
        partition, folded_offset, turn, requested, header = row
        return OpenTurn(
            partition,
            folded_offset,
            TurnRequested.FromString(requested),
            EventHeader.FromString(header),
            folded_offset,
            Fold(Turn.FromString(turn)),
        )

    async def forget(self, turn_id: str) -> None:
        """Forgets a turn that is over."""
        async with self._database.connection() as connection:
            await connection.execute(_FORGET, (turn_id,))
