"""Converts records to rows, and rows to records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from json import JSONDecoder, dumps
from typing import Any
from weakref import WeakSet

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from pgvector import HalfVector
from pgvector.psycopg.halfvec import register_halfvec_info
from psycopg.types import TypeInfo
from psycopg.types.json import Jsonb

from agentshell.db import binary
from agentshell.db.database import Connection
from agentshell.memory.stores.store import Embedding, Entry, Place
from kfm.memory.v1.memory_service_pb2 import Record

READ_COLUMNS = (
    "record_id, kind, text, metadata, source_uri, source_title, source_chunk_index, source_record_ids, user_id,"
    " create_time, update_time, expire_time, version"
)
WRITE_COLUMNS = (
    "tenant_id, namespace, record_id, kind, text, metadata, source_uri, source_title, source_chunk_index,"
    " source_record_ids, user_id, expire_time, embedding, embedding_2"
)
WRITE_TYPES = (
    *("text", "text", "text", "int2", "text", "jsonb", "text", "text", "int4"),
    *("text[]", "text", "timestamptz", "halfvec", "halfvec"),
)
PLACEHOLDERS = "%s" + ", %s" * 13
# Everything that a write replaces, for INSERT ... ON CONFLICT DO UPDATE SET.
REPLACE = (
    "kind = excluded.kind, text = excluded.text, metadata = excluded.metadata, source_uri = excluded.source_uri,"
    " source_title = excluded.source_title, source_chunk_index = excluded.source_chunk_index,"
    " source_record_ids = excluded.source_record_ids, user_id = excluded.user_id,"
    " expire_time = excluded.expire_time, embedding = excluded.embedding,"
    " embedding_2 = excluded.embedding_2"
)

ALIVE = "(expire_time IS NULL OR expire_time > now())"
FITS_FILTER = "(%(filter)s::jsonb IS NULL OR metadata @> %(filter)s::jsonb)"
IN_PLACE = "place = %(place)s"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_decode = JSONDecoder().decode


def _time(value: bytes) -> datetime:
    return binary.time_at(binary.number_of(value))


def _json(value: bytes) -> Any:
    return _decode(value[1:].decode())  # The first byte is the format's version.


# What decodes each of READ_COLUMNS from binary format.
READERS: Sequence[Callable[[bytes], Any]] = (
    *(bytes.decode, binary.number_of, bytes.decode, _json, bytes.decode, bytes.decode, binary.number_of),
    *(binary.texts_of, bytes.decode, _time, _time, _time, binary.number_of),
)

# The connections that know the type: registering it costs as much as a small search.
_adapted: WeakSet[Connection] = WeakSet()


def adapt(connection: Connection, halfvec: TypeInfo) -> None:
    """Registers the vector type with a connection."""
    if connection not in _adapted:
        register_halfvec_info(connection, halfvec)
        _adapted.add(connection)


def at(place: Place, **more: object) -> dict[str, Any]:
    """Returns the parameters of a statement about a place."""
    return {"place": place.key, **more}


def within(places: Sequence[Place], **more: object) -> dict[str, Any]:
    """Returns the parameters of a statement about places."""
    return {"places": [place.key for place in places], **more}


def json(struct: Struct | None) -> Jsonb | None:
    """Returns a filter or metadata as a parameter."""
    return None if struct is None else Jsonb(MessageToDict(struct))


def json_text(struct: Struct | None) -> str | None:
    """Returns a filter as text; equal filters give equal texts."""
    return None if struct is None else dumps(MessageToDict(struct), sort_keys=True)


def vector(embedding: Embedding | None) -> HalfVector | None:
    """Returns a vector as a parameter."""
    return None if embedding is None else HalfVector(embedding)


def row(place: Place, entry: Entry) -> tuple[object, ...]:
    """Returns a record as a row of WRITE_COLUMNS."""
    record, source = entry.record, entry.record.source
    has_source = record.HasField("source")
    return (
        place.tenant_id,
        place.namespace,
        record.record_id,
        record.kind,
        record.text,
        json(record.metadata) if record.HasField("metadata") else None,
        source.uri if has_source else None,
        source.title if has_source else None,
        source.chunk_index if has_source else None,
        list(source.record_ids) or None,
        record.user_id,
        record.expire_time.ToDatetime(UTC) if record.HasField("expire_time") else None,
        vector(entry.embedding),
        vector(entry.embedding_2),
    )


def record(*columns: Any) -> Record:
    """Returns the record in a row of READ_COLUMNS."""
    made = Record()
    fill(made, *columns)
    return made


def fill(made: Record, *columns: Any) -> None:
    """Fills an empty record from a row of READ_COLUMNS."""
    made.record_id, made.kind, made.text, metadata, uri, title, chunk_index, source_ids, *rest = columns
    made.user_id, *times, made.version = rest
    if metadata is not None:
        made.metadata.update(metadata)  # Takes a third of json_format's time.
        made.metadata.SetInParent()
    if uri is not None:
        made.source.uri, made.source.title, made.source.chunk_index = uri, title, chunk_index
        made.source.record_ids.extend(source_ids or ())
        made.source.SetInParent()
    _set_times(made, *times)


def receipt(
    record_id: str, create_time: datetime, update_time: datetime, expire_time: datetime | None, version: int
) -> Record:
    """Returns what a write reports about a record beyond what it was given."""
    made = Record(record_id=record_id, version=version)
    _set_times(made, create_time, update_time, expire_time)
    return made


def _set_times(made: Record, create_time: datetime, update_time: datetime, expire_time: datetime | None) -> None:
    _set_time(made.create_time, create_time)
    _set_time(made.update_time, update_time)
    if expire_time is not None:
        _set_time(made.expire_time, expire_time)


def _set_time(made: Timestamp, time: datetime) -> None:
    since = time - _EPOCH  # Takes a fifth of FromDatetime's time.
    made.seconds, made.nanos = since.days * 86_400 + since.seconds, since.microseconds * 1_000
