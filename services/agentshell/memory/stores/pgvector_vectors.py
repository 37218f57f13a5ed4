"""The slots of pgvector's records: filled and cleared in small transactions, while others read and write."""

# ruff: noqa: S608 - statements are built from literals alone: their type is LiteralString

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from psycopg.types import TypeInfo

from agentshell.db.database import Connection, Database
from agentshell.memory.stores import pgvector_rows as rows
from agentshell.memory.stores.store import Embedding, Missing, Place

COLUMNS: dict[int, LiteralString] = {1: "embedding", 2: "embedding_2"}


def _missing(column: LiteralString) -> LiteralString:
    return f"""
        SELECT record_id, update_time, coalesce(source_title, ''), text FROM memory.records
        WHERE place = %s AND record_id > %s AND {column} IS NULL AND {rows.ALIVE} ORDER BY record_id LIMIT %s"""


# Skips a locked record: either it is being written, and gets its vector, or it is found again.
def _fill(column: LiteralString) -> LiteralString:
    return f"""
        UPDATE memory.records SET {column} = %s WHERE (place, record_id) IN (
            SELECT place, record_id FROM memory.records
            WHERE place = %s AND record_id = %s AND update_time = %s AND {column} IS NULL FOR UPDATE SKIP LOCKED)"""


def _clear(column: LiteralString) -> LiteralString:
    return f"""
        WITH found AS (
            SELECT place, record_id FROM memory.records
            WHERE place = %s AND record_id > %s AND {column} IS NOT NULL ORDER BY record_id LIMIT %s
        ), held AS (
            SELECT place, record_id FROM memory.records WHERE (place, record_id) IN (SELECT * FROM found)
            FOR UPDATE SKIP LOCKED
        ), cleared AS (
            UPDATE memory.records SET {column} = NULL WHERE (place, record_id) IN (SELECT * FROM held)
        )
        SELECT max(record_id) FROM found"""


class PgvectorVectors:
    """See `Vectors`."""

    def __init__(self, database: Database, halfvec: TypeInfo) -> None:
        self._database = database
        self._halfvec = halfvec

    async def missing(
        self, connection: Connection, place: Place, slot: int, after: str, limit: int
    ) -> Sequence[Missing]:
        """See `Vectors.missing`."""
        cursor = await connection.execute(_missing(COLUMNS[slot]), [place.key, after, limit])
        return [Missing(*row) for row in await cursor.fetchall()]

    async def fill(self, place: Place, slot: int, vectors: Sequence[tuple[Missing, Embedding]]) -> None:
        """See `Vectors.fill`."""
        async with self._database.transaction() as connection:
            rows.adapt(connection, self._halfvec)
            await connection.cursor().executemany(
                _fill(COLUMNS[slot]),
                [(rows.vector(vector), place.key, found.record_id, found.update_time) for found, vector in vectors],
            )

    async def clear(self, place: Place, slot: int, after: str, limit: int) -> str | None:
        """See `Vectors.clear`."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(_clear(COLUMNS[slot]), [place.key, after, limit])
            (last,) = await cursor.fetchone() or (None,)
            return last
