"""The store in Postgres with pgvector."""

# ruff: noqa: S608 - statements are built from literals alone: their type is LiteralString

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC
from typing import Any, LiteralString

from psycopg.types import TypeInfo

from agentshell.db.database import Connection, Database
from agentshell.memory.stores import abilities, pgvector_copies, pgvector_list, wall
from agentshell.memory.stores import pgvector_rows as rows
from agentshell.memory.stores.pgvector_search import PgvectorSearch
from agentshell.memory.stores.pgvector_vectors import PgvectorVectors
from agentshell.memory.stores.store import (
    DocumentChanged,
    Entry,
    Found,
    Listing,
    Place,
    Position,
    Query,
    RecordPage,
    Scope,
    Space,
    Vectors,
)
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import (
    BatchWriteResponse,
    ForgetRequest,
    NamespaceStats,
    Record,
    RecordKind,
    StoredRecord,
)

# Through functions that run in front of the wall, because behind it they could use no index.
_OF_DOCUMENT = f"{rows.IN_PLACE} AND records.record_id IN (SELECT memory.of_document(%(place)s, %(uri)s))"

# An expired record is gone: a write in its place starts over at version 1.
_BURY = f"DELETE FROM memory.records WHERE {rows.IN_PLACE} AND record_id = ANY (%(ids)s) AND NOT {rows.ALIVE}"
_WRITE = f"""
    INSERT INTO memory.records AS record ({rows.WRITE_COLUMNS}) VALUES ({rows.PLACEHOLDERS})
    ON CONFLICT (place, record_id) DO UPDATE SET {rows.REPLACE}, update_time = now(), version = record.version + 1
    RETURNING create_time, update_time, expire_time, version"""

_GET = f"""
    SELECT DISTINCT ON (record_id) {rows.READ_COLUMNS} FROM memory.records
    WHERE place = ANY (%(places)s) AND record_id = ANY (%(ids)s) AND {rows.ALIVE}
    ORDER BY record_id, array_position(%(places)s::text[], place::text)"""

_UNTOUCHED = f"{_OF_DOCUMENT} AND version = 1 AND {rows.ALIVE}"
_CHUNKS = f"SELECT record_id, source_chunk_index FROM memory.records WHERE {_UNTOUCHED}"
# Kept chunks stay as they are; only their index may change. Returns how many of them there are.
_KEEP = f"""
    WITH kept AS (
        SELECT * FROM unnest(%(kept)s::text[], %(indexes)s::integer[]) AS kept (kept_id, chunk_index)
    ), moved AS (
        UPDATE memory.records SET source_chunk_index = chunk_index FROM kept
        WHERE record_id = kept_id AND {_UNTOUCHED} AND source_chunk_index <> chunk_index
    )
    SELECT count(*) FROM memory.records JOIN kept ON record_id = kept_id WHERE {_UNTOUCHED}"""
_LOCK_DOCUMENT = "SELECT pg_advisory_xact_lock(hashtextextended(%(document)s, 0))"
_COPY = f"COPY memory.records ({rows.WRITE_COLUMNS}) FROM STDIN (FORMAT BINARY)"

_RECORDS = f"{rows.IN_PLACE} AND record_id = ANY (%(ids)s)"
_CONTAINING = f"{rows.IN_PLACE} AND record_id IN (SELECT memory.containing(%(place)s, %(filter)s::jsonb))"
_OTHER_DOCUMENTS = f"{rows.IN_PLACE} AND source_uri <> '' AND source_uri <> ALL (%(uris)s)"
_REPLACED = f"{rows.IN_PLACE} AND record_id <> ALL (%(kept)s) AND (record_id = ANY (%(ids)s) OR {_OF_DOCUMENT})"
_FORGET_USER = f"""
    WITH gone AS (
        DELETE FROM memory.records WHERE tenant_id = %(tenant)s
            AND (namespace = ANY (%(namespaces)s) OR (user_id = %(user)s AND user_id <> ''))
        RETURNING namespace, {rows.ALIVE} AS alive
    )
    SELECT namespace, count(*) FILTER (WHERE alive) FROM gone GROUP BY namespace"""
_SWEEP = f"""
    DELETE FROM memory.records WHERE (place, record_id) IN (
        SELECT place, record_id FROM memory.records WHERE NOT {rows.ALIVE}
        ORDER BY expire_time LIMIT %s FOR UPDATE SKIP LOCKED)"""


class PgvectorStore:
    """Keeps records in one table, with HNSW for vectors and GIN for words and metadata. Create it with `open`."""

    abilities = abilities.PGVECTOR

    def __init__(self, database: Database, halfvec: TypeInfo) -> None:
        self._database = database
        self._halfvec = halfvec
        self._search = PgvectorSearch(database, halfvec)
        self.vectors: Vectors | None = PgvectorVectors(database, halfvec)

    @classmethod
    async def open(cls, database: Database) -> PgvectorStore:
        """Brings the database up to date. Raises CONFIG_INVALID if it has no pgvector 0.8 or newer."""
        await database.migrate("memory", "agentshell.memory.migrations")
        async with database.connection() as connection:
            cursor = await connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            (version,) = await cursor.fetchone() or ("none",)
            halfvec = await TypeInfo.fetch(connection, "public.halfvec")
        if halfvec is None or tuple(map(int, version.split(".")[:2])) < (0, 8):
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"the database has pgvector {version}, but 0.8 is needed: install it, then "
                "run ALTER EXTENSION vector UPDATE",
                metadata={"key": "database.url", "fix": "ALTER EXTENSION vector UPDATE"},
            )
        return cls(database, halfvec)

    async def prepare(self, space: Space) -> None:
        """See `Store.prepare`."""
        await self._search.prepare(space)

    async def write(
        self, connection: Connection, place: Place, entries: Sequence[Entry], expected_version: int | None
    ) -> BatchWriteResponse:
        """See `Store.write`."""
        rows.adapt(connection, self._halfvec)
        ids = [entry.record.record_id for entry in entries]
        await connection.execute(_BURY, rows.at(place, ids=ids))
        # In one order for all writers, so that no two transactions wait for each other.
        order = sorted(range(len(entries)), key=ids.__getitem__)
        cursor = connection.cursor()
        await cursor.executemany(_WRITE, [rows.row(place, entries[index]) for index in order], returning=True)
        written = [Record() for _ in entries]
        for index in order:
            row = await cursor.fetchone()
            cursor.nextset()
            assert row is not None  # noqa: S101 - RETURNING of an upsert gives a row
            written[index] = rows.receipt(ids[index], *row)
            _check_version(ids[index], written[index].version, expected_version)
        return BatchWriteResponse(records=written)

    async def search(self, query: Query) -> Found:
        """See `Store.search`."""
        return await self._search.search(query)

    async def get(self, places: Sequence[Place], record_ids: Sequence[str]) -> Mapping[str, Record]:
        """See `Store.get`."""
        async with wall.reading(self._database) as connection:
            cursor = await connection.execute(_GET, rows.within(places, ids=list(record_ids)))
            return {row[0]: rows.record(*row) for row in await cursor.fetchall()}

    async def list_records(self, listing: Listing, after: Position | None, limit: int, limit_bytes: int) -> RecordPage:
        """See `Store.list_records`."""
        statement = pgvector_list.statement(listing, after)
        parameters = pgvector_list.parameters(listing, after, limit, limit_bytes)
        async with self._database.connection() as connection:
            found = await (await connection.execute(statement, parameters)).fetchall()
        if not found:
            return RecordPage([], None, has_more=False)
        records = [rows.record(*columns) for _, _, *columns in found]
        tenant_id, has_more, *_ = found[-1]
        time = None if listing.key == "record_id" else getattr(records[-1], listing.key).ToDatetime(UTC)
        return RecordPage(records, Position(time, records[-1].record_id, tenant_id), has_more)

    async def forget(self, connection: Connection, place: Place, request: ForgetRequest) -> int:
        """See `Store.forget`."""
        match request.WhichOneof("what"):
            case "records":
                return await _forget(connection, _RECORDS, rows.at(place, ids=list(request.records.record_ids)))
            case "source_uri":
                return await _forget(connection, _OF_DOCUMENT, rows.at(place, uri=request.source_uri))
            case "filter":
                return await _forget(connection, _CONTAINING, rows.at(place, filter=rows.json(request.filter)))
            case _:
                return await _forget(connection, rows.IN_PLACE, rows.at(place))

    async def forget_user(
        self, connection: Connection, tenant_id: str, user_id: str, namespaces: Sequence[str]
    ) -> Mapping[str, int]:
        """See `Store.forget_user`."""
        parameters = {"tenant": tenant_id, "user": user_id, "namespaces": list(namespaces)}
        cursor = await connection.execute(_FORGET_USER, parameters)
        return dict(await cursor.fetchall())

    async def chunks(self, place: Place, source_uri: str) -> Mapping[str, int]:
        """See `Store.chunks`."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(_CHUNKS, rows.at(place, uri=source_uri))
            return dict(await cursor.fetchall())

    async def replace_document(
        self,
        connection: Connection,
        place: Place,
        source_uri: str,
        kept: Mapping[str, int],
        entries: Sequence[Entry],
    ) -> int:
        """See `Store.replace_document`."""
        parameters = rows.at(
            place,
            uri=source_uri,
            ids=[entry.record.record_id for entry in entries],
            kept=list(kept),
            indexes=list(kept.values()),
        )
        rows.adapt(connection, self._halfvec)
        await connection.execute(_LOCK_DOCUMENT, {"document": f"{place.key}\n{source_uri}"})
        cursor = await connection.execute(_KEEP, parameters)
        (found,) = await cursor.fetchone() or (0,)
        if found != len(kept):
            raise DocumentChanged
        forgotten = await _forget(connection, _REPLACED, parameters)
        await wall.leave(connection)
        async with cursor.copy(_COPY) as copy:
            copy.set_types(rows.WRITE_TYPES)
            for entry in entries:
                await copy.write_row(rows.row(place, entry))
        return forgotten

    async def forget_documents(self, connection: Connection, place: Place, kept_uris: Collection[str]) -> int:
        """See `Store.forget_documents`."""
        return await _forget(connection, _OTHER_DOCUMENTS, rows.at(place, uris=list(kept_uris)))

    async def copy(self, scope: Scope, after: str, limit: int, limit_bytes: int) -> Sequence[tuple[str, StoredRecord]]:
        """See `Store.copy`."""
        after_namespace, _, after_id = after.partition(" ")
        parameters = {
            "tenant": scope.tenant_id,
            "namespaces": sorted(scope.namespaces or ()),
            "user": scope.user_id or "",
            "after_namespace": after_namespace,
            "after_id": after_id,
            "limit": limit,
            "limit_bytes": limit_bytes,
        }
        is_all = scope.namespaces is None and scope.user_id is None
        statement = pgvector_copies.COPY_ALL if is_all else pgvector_copies.COPY_SOME
        async with wall.reading(self._database) as connection:
            found = await (await connection.execute(statement, parameters)).fetchall()
        stored = [StoredRecord(namespace=namespace, record=rows.record(*columns)) for namespace, *columns in found]
        return [(f"{one.namespace} {one.record.record_id}", one) for one in stored]

    async def restore(self, connection: Connection, place: Place, entries: Sequence[Entry]) -> int:
        """See `Store.restore`."""
        rows.adapt(connection, self._halfvec)
        ids = [entry.record.record_id for entry in entries]
        await connection.execute(_BURY, rows.at(place, ids=ids))
        ordered = sorted(entries, key=lambda entry: entry.record.record_id)
        cursor = connection.cursor()
        await cursor.executemany(pgvector_copies.RESTORE, [_whole_row(place, entry) for entry in ordered])
        return cursor.rowcount

    async def stats(self, tenant_id: str, namespace: str, after: str, limit: int) -> Sequence[NamespaceStats]:
        """See `Store.stats`."""
        parameters = {"tenant": tenant_id, "namespace": namespace, "after": after, "limit": limit}
        found: dict[str, NamespaceStats] = {}
        async with wall.reading(self._database) as connection:
            cursor = await connection.execute(pgvector_copies.STATS, parameters)
            for name, kind, records, text_bytes, next_embedded in await cursor.fetchall():
                stats = found.setdefault(name, NamespaceStats(namespace=name))
                stats.record_counts[RecordKind.Name(kind)] = records
                stats.record_count += records
                stats.text_bytes += text_bytes
                stats.next_embedded_count += next_embedded
        return list(found.values())

    async def sweep(self, limit: int) -> int:
        """See `Store.sweep`."""
        async with self._database.connection() as connection:
            return (await connection.execute(_SWEEP, [limit])).rowcount


async def _forget(connection: Connection, condition: LiteralString, parameters: dict[str, Any]) -> int:
    cursor = await connection.execute(
        f"WITH gone AS (DELETE FROM memory.records WHERE {condition} RETURNING expire_time)"
        f" SELECT count(*) FILTER (WHERE {rows.ALIVE}) FROM gone",
        parameters,
    )
    (count,) = await cursor.fetchone() or (0,)
    return int(count)


def _check_version(record_id: str, version: int, expected: int | None) -> None:
    """Compares after the write, which holds the row's lock; a conflict rolls it back."""
    if expected is None or version == expected + 1:
        return
    found = f"it is at version {version - 1}" if version > 1 else "there is none"
    raise AgentShellError(
        error_pb2.ERROR_REASON_VERSION_CONFLICT,
        f"record {record_id!r} was expected at version {expected} (0: none), and {found}: read it again",
        metadata={"record_id": record_id, "version": str(version - 1)},
    )


def _whole_row(place: Place, entry: Entry) -> tuple[object, ...]:
    record = entry.record
    times = (record.create_time.ToDatetime(UTC), record.update_time.ToDatetime(UTC))
    return (*rows.row(place, entry), *times, record.version)
