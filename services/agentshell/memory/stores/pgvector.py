"""The store in Postgres with pgvector."""

# ruff: noqa: S608 - statements are put together from the literals of this file alone: their type is LiteralString

from __future__ import annotations

from collections.abc import AsyncIterable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from pgvector import HalfVector
from pgvector.psycopg.halfvec import register_halfvec_info
from psycopg.types import TypeInfo
from psycopg.types.json import Jsonb

from agentshell.db.database import Connection, Database
from agentshell.memory import recall
from agentshell.memory.stores import once as effects
from agentshell.memory.stores.history import History
from agentshell.memory.stores.store import Embedding, Entry, MessagePage, Once, Place, Query, RecordPage
from agentshell.mesh.errors import AgentShellError
from kfm.content.v1.content_pb2 import Message
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import (
    AppendMessagesResponse,
    BatchWriteResponse,
    ForgetRequest,
    ForgetResponse,
    Hit,
    Record,
)

_SESSION_PREFIX = "session/"
_READ_COLUMNS = (
    "record_id, kind, text, metadata, source_uri, source_title, source_chunk_index, create_time, update_time,"
    " expire_time, version"
)
_WRITE_COLUMNS = (
    "tenant_id, namespace, record_id, kind, text, metadata, source_uri, source_title, source_chunk_index,"
    " expire_time, embedding"
)
_WRITE_TYPES = ["text", "text", "text", "int2", "text", "jsonb", "text", "text", "int4", "timestamptz", "halfvec"]

_ALIVE = "(expire_time IS NULL OR expire_time > now())"
_FITS_FILTER = "(%(filter)s::jsonb IS NULL OR metadata @> %(filter)s::jsonb)"
_IN_PLACES = f"place = ANY (%(places)s) AND {_FITS_FILTER}"
_IN_PLACE = "place = %(place)s"
_OF_DOCUMENT = (
    f"{_IN_PLACE} AND hashtextextended(source_uri, 0) = hashtextextended(%(uri)s, 0) AND source_uri = %(uri)s"
)

# What has expired is gone: a write in its place begins anew, at version 1.
_SWEEP = f"DELETE FROM memory.records WHERE {_IN_PLACE} AND record_id = ANY (%(ids)s) AND NOT {_ALIVE}"
_WRITE = f"""
    INSERT INTO memory.records AS record ({_WRITE_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (place, record_id) DO UPDATE SET
        kind = excluded.kind, text = excluded.text, metadata = excluded.metadata, source_uri = excluded.source_uri,
        source_title = excluded.source_title, source_chunk_index = excluded.source_chunk_index,
        expire_time = excluded.expire_time, embedding = excluded.embedding,
        update_time = now(), version = record.version + 1
    RETURNING create_time, update_time, version"""

# What to look for by words, and how many there are to look through by vector, counted no further than needed. Sets for
# the transaction: plans made for its parameters, not for any; the order of vectors from the index where that can be;
# and an index that goes on until enough records pass the filter, in nearly the right order. Among 17,716 chunks it
# found all of the 10 nearest by looking at 200, and 9.5 of them at 100.
_MEASURE = f"""
    SELECT memory.any_word(%(text)s)::text, (
            SELECT count(*) FROM (
                SELECT FROM memory.records WHERE %(embedding)s::halfvec IS NOT NULL AND {_IN_PLACES}
                LIMIT %(exact_records)s + 1
            ) found
        ), set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_sort', 'off', true),
        set_config('hnsw.iterative_scan', 'relaxed_order', true), set_config('hnsw.ef_search', '200', true)"""
_DISTANCE = "embedding <=> %(embedding)s::halfvec"
# The index cannot order by a sum: this compares all.
_EXACTLY = f"({_DISTANCE}) + 0"


def _search(order: LiteralString) -> LiteralString:
    key = "place, record_id"
    return f"""
    WITH nearest AS MATERIALIZED (
        SELECT {key}, {_DISTANCE} AS distance FROM memory.records
        WHERE %(embedding)s::halfvec IS NOT NULL AND embedding IS NOT NULL AND {_ALIVE} AND {_IN_PLACES}
        ORDER BY {order} LIMIT %(candidates)s
    ), by_vector AS (
        SELECT *, row_number() OVER (ORDER BY distance, record_id) AS rank FROM nearest
    ), worded AS MATERIALIZED (
        SELECT {key}, ts_rank(words, %(words)s::tsquery, 1) AS text_score FROM memory.records
        WHERE words @@ %(words)s::tsquery AND {_ALIVE} AND {_IN_PLACES}
        ORDER BY text_score DESC, record_id LIMIT %(candidates)s
    ), by_words AS (
        SELECT *, row_number() OVER (ORDER BY text_score DESC, record_id) AS rank FROM worded
    ), best AS (
        SELECT {key}, 1 - distance AS vector_score, text_score,
            coalesce(%(vector_weight)s / (%(rank_constant)s + by_vector.rank), 0)
                + coalesce(%(text_weight)s / (%(rank_constant)s + by_words.rank), 0) AS score
        FROM by_vector FULL JOIN by_words USING ({key})
        ORDER BY score DESC, record_id LIMIT %(limit)s
    )
    SELECT namespace, score, vector_score, text_score, {_READ_COLUMNS}
    FROM best JOIN memory.records USING ({key}) ORDER BY score DESC, record_id"""


_SEARCH_EXACTLY, _SEARCH_BY_INDEX = _search(_EXACTLY), _search(_DISTANCE)

_GET = f"""
    SELECT {_READ_COLUMNS} FROM memory.records
    WHERE record_id = %(id)s AND {_ALIVE} AND {_IN_PLACES}
    ORDER BY array_position(%(places)s::text[], place::text) LIMIT 1"""
_LIST = f"""
    SELECT has_more, tenant_id, {_READ_COLUMNS} FROM (
        SELECT *, row_number() OVER by_id AS number, lead(record_id) OVER by_id IS NOT NULL AS has_more,
            sum(octet_length(text) + coalesce(octet_length(metadata::text), 0)) OVER by_id AS total_bytes
        FROM (
            SELECT tenant_id, {_READ_COLUMNS} FROM unnest(%(places)s::text[]) AS listed (place) CROSS JOIN LATERAL (
                SELECT tenant_id, {_READ_COLUMNS} FROM memory.records
                WHERE records.place = listed.place AND record_id >= %(after_id)s
                    AND (record_id, tenant_id) > (%(after_id)s, %(after_tenant)s)
                    AND {_ALIVE} AND {_FITS_FILTER}
                ORDER BY record_id LIMIT %(limit)s + 1
            ) of_place
            ORDER BY record_id, tenant_id LIMIT %(limit)s + 1
        ) candidates
        WINDOW by_id AS (ORDER BY record_id, tenant_id)
    ) sized
    WHERE number = 1 OR (number <= %(limit)s AND total_bytes <= %(limit_bytes)s)
    ORDER BY record_id, tenant_id"""

_CHUNK_IDS = f"SELECT record_id FROM memory.records WHERE {_OF_DOCUMENT} AND version = 1 AND {_ALIVE}"
_LOCK_DOCUMENT = "SELECT pg_advisory_xact_lock(hashtextextended(%(document)s, 0))"
_COPY = f"COPY memory.records ({_WRITE_COLUMNS}) FROM STDIN (FORMAT BINARY)"


_RECORDS = f"{_IN_PLACE} AND record_id = ANY (%(ids)s)"
_OTHER_DOCUMENTS = f"{_IN_PLACE} AND source_uri <> '' AND source_uri <> ALL (%(uris)s)"
_REPLACED = f"{_IN_PLACE} AND (record_id = ANY (%(ids)s) OR {_OF_DOCUMENT})"


class PgvectorStore:
    """Keeps records in one table: HNSW by vector, GIN by words and metadata. Make it with `open`."""

    def __init__(self, database: Database, halfvec: TypeInfo) -> None:
        self._database = database
        self._halfvec = halfvec
        self._history = History(database)

    @classmethod
    async def open(cls, database: Database) -> PgvectorStore:
        """Brings the database up to date. Raises CONFIG_INVALID where it has no pgvector 0.8 or newer."""
        await database.migrate("memory", "agentshell.memory.migrations")
        async with database.connection() as connection:
            cursor = await connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            (version,) = await cursor.fetchone() or ("none",)
            halfvec = await TypeInfo.fetch(connection, "public.halfvec")
        if halfvec is None or tuple(map(int, version.split(".")[:2])) < (0, 8):
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"the database has pgvector {version}, and needs 0.8: install that, then ALTER EXTENSION vector UPDATE",
                metadata={"key": "database.url", "fix": "ALTER EXTENSION vector UPDATE"},
            )
        return cls(database, halfvec)

    async def write(
        self, place: Place, entries: Sequence[Entry], expected_version: int | None, once: Once | None
    ) -> BatchWriteResponse:
        """See `Store.write`."""

        async def effect(connection: Connection) -> BatchWriteResponse:
            register_halfvec_info(connection, self._halfvec)
            ids = [entry.record.record_id for entry in entries]
            await connection.execute(_SWEEP, _at(place, ids=ids))
            # In one order for all, so that no two transactions wait for each other.
            order = sorted(range(len(entries)), key=ids.__getitem__)
            cursor = connection.cursor()
            await cursor.executemany(_WRITE, [_row(place, *entries[index]) for index in order], returning=True)
            written = [Record() for _ in entries]
            for index in order:
                row = await cursor.fetchone()
                cursor.nextset()
                assert row is not None  # noqa: S101 - RETURNING of an upsert gives a row
                _check_version(ids[index], row[2], expected_version)
                written[index] = _receipt(ids[index], *row)
            return BatchWriteResponse(records=written)

        return await effects.run(self._database, place.tenant_id, once, BatchWriteResponse, effect)

    async def search(self, query: Query) -> list[Hit]:
        """See `Store.search`."""
        parameters = _in(
            query.places,
            text=query.text,
            embedding=_vector(query.embedding),
            vector_weight=query.weights.vector,
            text_weight=query.weights.text,
            filter=_json(query.containing),
            exact_records=recall.EXACT_RECORDS,
            rank_constant=recall.RANK_CONSTANT,
            candidates=max(recall.CANDIDATES, query.limit),
            limit=query.limit,
        )
        async with self._database.transaction() as connection:
            register_halfvec_info(connection, self._halfvec)
            cursor = await connection.execute(_MEASURE, parameters)
            words, count, *_ = await cursor.fetchone() or (None, 0)
            search = _SEARCH_EXACTLY if count <= recall.EXACT_RECORDS else _SEARCH_BY_INDEX
            cursor = await connection.execute(search, {**parameters, "words": words})
            return [_hit(*row) for row in await cursor.fetchall()]

    async def get(self, places: Sequence[Place], record_id: str) -> Record | None:
        """See `Store.get`."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(_GET, _in(places, id=record_id, filter=None))
            row = await cursor.fetchone()
        return _record(*row) if row else None

    async def list_records(
        self, places: Sequence[Place], containing: Struct | None, after: tuple[str, str], limit: int, limit_bytes: int
    ) -> RecordPage:
        """See `Store.list_records`."""
        parameters = _in(
            places,
            filter=_json(containing),
            after_id=after[0],
            after_tenant=after[1],
            limit=limit,
            limit_bytes=limit_bytes,
        )
        async with self._database.connection() as connection:
            rows = await (await connection.execute(_LIST, parameters)).fetchall()
        records = [(tenant_id, _record(*columns)) for _, tenant_id, *columns in rows]
        return RecordPage(records, has_more=bool(rows and rows[-1][0]))

    async def forget(self, place: Place, request: ForgetRequest, once: Once | None) -> ForgetResponse:
        """See `Store.forget`."""

        async def effect(connection: Connection) -> ForgetResponse:
            messages = 0
            match request.WhichOneof("what"):
                case "records":
                    records = await _forget(connection, _RECORDS, _at(place, ids=list(request.records.record_ids)))
                case "source_uri":
                    records = await _forget(connection, _OF_DOCUMENT, _at(place, uri=request.source_uri))
                case _:
                    records = await _forget(connection, _IN_PLACE, _at(place))
                    if place.namespace.startswith(_SESSION_PREFIX):
                        session_id = place.namespace.removeprefix(_SESSION_PREFIX)
                        messages = await History.forget(connection, place.tenant_id, session_id)
            return ForgetResponse(record_count=records, message_count=messages)

        return await effects.run(self._database, place.tenant_id, once, ForgetResponse, effect)

    async def chunk_ids(self, place: Place, source_uri: str) -> set[str]:
        """See `Store.chunk_ids`."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(_CHUNK_IDS, _at(place, uri=source_uri))
            return {record_id for (record_id,) in await cursor.fetchall()}

    async def replace_document(
        self, place: Place, source_uri: str, records: Sequence[Record], embeddings: AsyncIterable[Embedding | None]
    ) -> int:
        """See `Store.replace_document`."""
        parameters = _at(place, uri=source_uri, ids=[record.record_id for record in records])
        async with self._database.transaction() as connection:
            register_halfvec_info(connection, self._halfvec)
            await connection.execute(_LOCK_DOCUMENT, {"document": f"{_key(place)}\n{source_uri}"})
            forgotten = await _forget(connection, _REPLACED, parameters)
            async with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                copy.set_types(_WRITE_TYPES)
                following = iter(records)
                async for embedding in embeddings:
                    await copy.write_row(_row(place, next(following), embedding))
        return forgotten

    async def forget_documents(self, place: Place, kept_uris: Collection[str]) -> int:
        """See `Store.forget_documents`."""
        async with self._database.connection() as connection:
            return await _forget(connection, _OTHER_DOCUMENTS, _at(place, uris=list(kept_uris)))

    async def append_messages(
        self, tenant_id: str, session_id: str, messages: Sequence[Message], once: Once
    ) -> AppendMessagesResponse:
        """See `Store.append_messages`."""
        return await self._history.append(tenant_id, session_id, messages, once)

    async def list_messages(
        self, tenant_id: str, session_id: str, before: int | None, limit: int, limit_bytes: int
    ) -> MessagePage:
        """See `Store.list_messages`."""
        return await self._history.list(tenant_id, session_id, before, limit, limit_bytes)


async def _forget(connection: Connection, condition: LiteralString, parameters: dict[str, Any]) -> int:
    cursor = await connection.execute(
        f"WITH gone AS (DELETE FROM memory.records WHERE {condition} RETURNING expire_time)"
        f" SELECT count(*) FILTER (WHERE {_ALIVE}) FROM gone",
        parameters,
    )
    (count,) = await cursor.fetchone() or (0,)
    return int(count)


def _check_version(record_id: str, version: int, expected: int | None) -> None:
    """Compares after the write, which has the row locked; a conflict rolls it back."""
    if expected is None or version == expected + 1:
        return
    found = f"it is at version {version - 1}" if version > 1 else "there is none"
    raise AgentShellError(
        error_pb2.ERROR_REASON_VERSION_CONFLICT,
        f"record {record_id!r} was expected at version {expected} (0: none), and {found}: read it again",
        metadata={"record_id": record_id, "version": str(version - 1)},
    )


def _key(place: Place) -> str:
    """Returns the place as the column `place` has it."""
    return f"{place.namespace} {place.tenant_id}"


def _at(place: Place, **more: object) -> dict[str, Any]:
    return {"place": _key(place), **more}


def _in(places: Sequence[Place], **more: object) -> dict[str, Any]:
    return {"places": [_key(place) for place in places], **more}


def _json(struct: Struct | None) -> Jsonb | None:
    return None if struct is None else Jsonb(MessageToDict(struct))


def _vector(embedding: Embedding | None) -> HalfVector | None:
    return None if embedding is None else HalfVector(embedding)


def _row(place: Place, record: Record, embedding: Embedding | None) -> tuple[object, ...]:
    """Returns the record as `_WRITE_COLUMNS` has it."""
    has_source = record.HasField("source")
    return (
        place.tenant_id,
        place.namespace,
        record.record_id,
        record.kind,
        record.text,
        _json(record.metadata) if record.HasField("metadata") else None,
        record.source.uri if has_source else None,
        record.source.title if has_source else None,
        record.source.chunk_index if has_source else None,
        record.expire_time.ToDatetime(UTC) if record.HasField("expire_time") else None,
        _vector(embedding),
    )


def _record(*columns: Any) -> Record:
    """Returns the record that `_READ_COLUMNS` holds."""
    record_id, kind, text, metadata, uri, title, chunk_index, create_time, update_time, expire_time, version = columns
    record = Record(record_id=record_id, kind=kind, text=text, version=version)
    if metadata is not None:
        ParseDict(metadata, record.metadata)
        record.metadata.SetInParent()
    if uri is not None:
        record.source.uri, record.source.title, record.source.chunk_index = uri, title, chunk_index
        record.source.SetInParent()
    record.create_time.FromDatetime(create_time)
    record.update_time.FromDatetime(update_time)
    if expire_time is not None:
        record.expire_time.FromDatetime(expire_time)
    return record


def _receipt(record_id: str, create_time: datetime, update_time: datetime, version: int) -> Record:
    record = Record(record_id=record_id, version=version)
    record.create_time.FromDatetime(create_time)
    record.update_time.FromDatetime(update_time)
    return record


def _hit(namespace: str, score: float, vector_score: float | None, text_score: float | None, *columns: Any) -> Hit:
    return Hit(
        record=_record(*columns), namespace=namespace, score=score, vector_score=vector_score, text_score=text_score
    )
