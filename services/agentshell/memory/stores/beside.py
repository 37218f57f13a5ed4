"""A store whose vectors are searched by an index beside Postgres.

Postgres decides what exists: the index only says which vectors are near, and its hits are looked up among the records,
with all filters. So nothing that was forgotten, expired or overwritten is found, whatever the index still holds; a
vector is in the index before its record can be read; and a lost index is rebuilt when the store opens.
"""

# ruff: noqa: S608 - statements are built from literals alone

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Self

import structlog
from pgvector.psycopg.halfvec import register_halfvec_info
from psycopg.types import TypeInfo

from agentshell.db import binary
from agentshell.db.database import Connection, Database
from agentshell.memory import recall
from agentshell.memory.stores import pgvector_rows as rows
from agentshell.memory.stores import wall
from agentshell.memory.stores.index import Point, VectorIndex
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.pgvector_search import Nearest, PgvectorSearch
from agentshell.memory.stores.store import Entry, Place, Probe, Query, Space
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import SEARCH_PLAN_INDEX, BatchWriteResponse

_log = structlog.get_logger("agentshell.memory")

# The most that the index is asked for, four times as many each time; beyond, all that pass the filters are compared.
_MAX_ASKED = 8_192
_BATCH = 200
# Longer than any transaction that puts vectors into the index.
_INTENT = "interval '1 hour'"

_INTEND = f"""
    INSERT INTO memory_vectors.dead (point, dimension, ripe_time)
    SELECT point::uuid, $2::bigint, now() + {_INTENT} FROM unnest($1::text[]) AS intended (point)"""
_MAP = """
    INSERT INTO memory_vectors.vectors (place, record_id, point, dimension)
    SELECT %(place)s, record_id, point, %(dimension)s
    FROM unnest(%(ids)s::text[], %(points)s::uuid[]) AS written (record_id, point)
    ON CONFLICT (place, record_id) DO UPDATE SET point = excluded.point, dimension = excluded.dimension"""
_UNMAP = "DELETE FROM memory_vectors.vectors WHERE place = %(place)s AND record_id = ANY (%(ids)s)"
_LIVE = "DELETE FROM memory_vectors.dead WHERE point = ANY (%s::uuid[])"
_BURIED = """
    DELETE FROM memory_vectors.dead WHERE point IN (
        SELECT point FROM memory_vectors.dead WHERE ripe_time <= now()
        ORDER BY ripe_time LIMIT %s FOR UPDATE SKIP LOCKED)
    RETURNING point, dimension"""
_VERSIONS = "SELECT record_id, version FROM memory.records WHERE place = %(place)s AND record_id = ANY (%(ids)s)"
_PASSING = (
    "SELECT memory_vectors.passing(%(places)s, %(dimension)s, %(filter)s::jsonb, %(kinds)s::smallint[], %(most)s)"
)
_FOUND = f"""
    SELECT place, record_id, embedding <=> %(vector)s AS distance
    FROM memory_vectors.vectors JOIN memory.records USING (place, record_id)
    WHERE point = ANY (%(points)s::uuid[]) AND place = ANY (%(places)s) AND {rows.ALIVE} AND {rows.FITS_FILTER}
        AND (cardinality(%(kinds)s::smallint[]) = 0 OR kind = ANY (%(kinds)s))
    ORDER BY distance, record_id LIMIT %(wanted)s"""
_LACKING = """
    SELECT place, record_id, embedding FROM memory.records LEFT JOIN memory_vectors.vectors USING (place, record_id)
    WHERE embedding IS NOT NULL AND point IS NULL LIMIT %s FOR UPDATE OF records SKIP LOCKED"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('memory_vectors', 1))"
_COUNTS = "SELECT dimension, count(*) FROM memory_vectors.vectors GROUP BY dimension"
_FORGET_ALL = "DELETE FROM memory_vectors.vectors WHERE dimension = %s"


class BesideStore(PgvectorStore):
    """Keeps records in Postgres, and their vectors also in an index beside it. Create it with `open_beside`."""

    def __init__(self, database: Database, halfvec: TypeInfo, index: VectorIndex, exact_records: int) -> None:
        super().__init__(database, halfvec)
        self.abilities = index.abilities
        self.vectors = None  # A namespace keeps its first embedder.
        self._index = index
        self._exact_records = exact_records
        self._search = PgvectorSearch(database, halfvec, self._nearest)
        # On a connection of its own: an intent must persist even if the transaction that it is for fails.
        self._intend = database.statement(_INTEND)

    @classmethod
    async def open_beside(cls, database: Database, index: VectorIndex, exact_records: int = recall.EXACT_LEAST) -> Self:
        """Brings the database and the index up to date: adds to the index what it lacks.

        If at most `exact_records` records pass a search's filters, Postgres compares them one by one.
        """
        plain = await PgvectorStore.open(database)
        await database.migrate("memory_vectors", "agentshell.memory.vector_migrations")
        store = cls(database, plain._halfvec, index, exact_records)
        await store._mend()
        return store

    async def prepare(self, space: Space) -> None:
        """See `Store.prepare`."""
        if space.dimension > self.abilities.max_dimension:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"embedder {space.embedder!r} makes vectors of {space.dimension} numbers, and store "
                f"{self.abilities.name} takes {self.abilities.max_dimension}: choose another one",
                metadata={"key": "memory.namespaces", "fix": f"at most {self.abilities.max_dimension} dimensions"},
            )
        await self._index.prepare(space.dimension)

    async def write(
        self, connection: Connection, place: Place, entries: Sequence[Entry], expected_version: int | None
    ) -> BatchWriteResponse:
        """See `Store.write`."""
        written = await super().write(connection, place, entries, expected_version)
        await self._put(connection, place, entries)
        return written

    async def replace_document(
        self,
        connection: Connection,
        place: Place,
        source_uri: str,
        kept: Mapping[str, int],
        entries: Sequence[Entry],
    ) -> int:
        """See `Store.replace_document`."""
        forgotten = await super().replace_document(connection, place, source_uri, kept, entries)
        await self._put(connection, place, entries)
        return forgotten

    async def restore(self, connection: Connection, place: Place, entries: Sequence[Entry]) -> int:
        """See `Store.restore`."""
        restored = await super().restore(connection, place, entries)
        parameters = rows.at(place, ids=[entry.record.record_id for entry in entries])
        versions = dict(await (await connection.execute(_VERSIONS, parameters)).fetchall())
        there = [entry for entry in entries if versions.get(entry.record.record_id) == entry.record.version]
        await self._put(connection, place, there)
        return restored

    async def sweep(self, limit: int) -> int:
        """See `Store.sweep`. Also removes vectors from the index that belong to no record any more."""
        swept = await super().sweep(limit)
        while await self._bury(limit) == limit:
            pass
        return swept

    async def _put(self, connection: Connection, place: Place, entries: Sequence[Entry]) -> None:
        """Puts the entries' vectors into the index, for the connection's transaction."""
        blank = [entry.record.record_id for entry in entries if entry.embedding is None]
        if blank:
            await connection.execute(_UNMAP, rows.at(place, ids=blank))
        # If a record comes twice, the last one counts.
        vectors = {entry.record.record_id: entry.embedding for entry in entries if entry.embedding is not None}
        ids = list(vectors)
        for begin in range(0, len(ids), _BATCH):
            batch = ids[begin : begin + _BATCH]
            points = [Point(uuid.uuid4(), place.key, vectors[record_id]) for record_id in batch]
            await self._put_points(points)
            await self._map(connection, place.key, batch, points)

    async def _put_points(self, points: Sequence[Point]) -> None:
        """Notes that the points must be removed again unless a transaction commits, and adds them to the index."""
        dimension = len(points[0].embedding)
        names = binary.texts([str(point.point_id) for point in points])
        await self._intend.run([names, binary.bigint(dimension)])
        await self._index.put(dimension, points)

    async def _map(self, connection: Connection, place: str, ids: Sequence[str], points: Sequence[Point]) -> None:
        names = [point.point_id for point in points]
        parameters = {"place": place, "ids": ids, "points": names, "dimension": len(points[0].embedding)}
        await connection.execute(_MAP, parameters)
        await connection.execute(_LIVE, [names])

    async def _nearest(self, query: Query, probe: Probe, wanted: int) -> Nearest | None:
        """See `pgvector_search.Look`. Leaves the search to Postgres if few pass the filters, or if the index fails."""
        parameters: dict[str, Any] = rows.within(
            probe.places,
            dimension=probe.space.dimension,
            vector=rows.vector(probe.embedding),
            filter=rows.json(query.containing),
            kinds=list(query.kinds),
            wanted=wanted,
            most=max(self._exact_records, wanted),  # Up to this many are counted; beyond, they are estimated.
        )
        async with self._database.connection() as connection:
            (passed,) = await (await connection.execute(_PASSING, parameters)).fetchone() or (0,)
        # Slot 2 belongs to a namespace that changed its embedder while another store was configured.
        if passed <= self._exact_records or probe.space.slot != 1:
            return None
        try:
            found = await self._by_index(probe, wanted, passed, parameters)
        except AgentShellError as error:
            _log.warning("searched without the index of vectors", store=self.abilities.name, detail=error.message)
            return None
        return None if found is None else Nearest(SEARCH_PLAN_INDEX, passed, *found)

    async def _by_index(
        self, probe: Probe, wanted: int, passed: int, parameters: Mapping[str, Any]
    ) -> tuple[list[str], list[str], list[float]] | None:
        """Returns what the index finds that passes the filters; None if there may be more."""
        asked = 2 * wanted
        while asked <= _MAX_ASKED:
            names: list[uuid.UUID] = []
            is_all = True
            for place in probe.places:
                nearest = await self._index.nearest(place.key, probe.embedding, asked)
                is_all &= len(nearest) < asked
                names += nearest
            async with wall.reading(self._database) as connection:
                register_halfvec_info(connection, self._halfvec)
                found = await (await connection.execute(_FOUND, {**parameters, "points": names})).fetchall()
            # An index may miss a few; if so, all are compared.
            if len(found) >= min(wanted, passed):
                return [row[0] for row in found], [row[1] for row in found], [row[2] for row in found]
            if is_all:
                break
            asked *= 4
        return None

    async def _bury(self, limit: int) -> int:
        async with self._database.transaction() as connection:
            buried = await (await connection.execute(_BURIED, [limit])).fetchall()
            for dimension in {dimension for _, dimension in buried}:
                await self._index.remove(dimension, [point for point, of in buried if of == dimension])
        return len(buried)

    async def _mend(self) -> None:
        """Adds to the index what it lacks because it is new, was lost, or was not the configured store."""
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK)  # One process at a time; the next finds it done.
            before = dict(await (await connection.execute(_COUNTS)).fetchall())
            there = {dimension: await self._index.count(dimension) for dimension in before}
            after = dict(await (await connection.execute(_COUNTS)).fetchall())
            for dimension, count in there.items():
                # Others write meanwhile: a vector enters the index before Postgres counts it, and leaves it after.
                if count < min(before[dimension], after.get(dimension, 0)):
                    await self._index.drop(dimension)
                    await connection.execute(_FORGET_ALL, [dimension])
        while await self._fill() == _BATCH:
            pass

    async def _fill(self) -> int:
        async with self._database.transaction() as connection:
            register_halfvec_info(connection, self._halfvec)
            lacking = await (await connection.execute(_LACKING, [_BATCH])).fetchall()
            for dimension in {vector.dimensions() for _, _, vector in lacking}:
                await self._index.prepare(dimension)
                of = [row for row in lacking if row[2].dimensions() == dimension]
                points = [Point(uuid.uuid4(), place, vector.to_numpy()) for place, _, vector in of]
                await self._put_points(points)
                for (place, record_id, _), point in zip(of, points, strict=True):
                    await self._map(connection, place, [record_id], [point])
        return len(lacking)
