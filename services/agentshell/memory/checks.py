"""Checks requests beyond the contract's own rules, and translates them into the store's terms."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from typing import cast

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from agentshell.memory.stores.store import Once, Place
from agentshell.mesh import call, ids
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb

MAX_METADATA_BYTES = 64 * 1024

_SHARED_PREFIX = "knowledge/"


def own(namespace: str) -> Place:
    """Returns the place where the caller writes a namespace."""
    return Place(call.tenant(), namespace)


def readable(namespace: str) -> list[Place]:
    """Returns the places where the caller may read a namespace: its own first, then the shared tenant's."""
    places = [own(namespace)]
    if namespace.startswith(_SHARED_PREFIX) and call.tenant() != call.SHARED_TENANT:
        places.append(Place(call.SHARED_TENANT, namespace))
    return places


def to_write(given: pb.Record, field: str) -> pb.Record:
    """Returns the record as it will be written. Raises INVALID_REQUEST and TOO_LARGE."""
    record = pb.Record()
    record.CopyFrom(given)
    record.record_id = record.record_id or ids.ulid()
    record.kind = record.kind or pb.RECORD_KIND_FACT
    for output in ("create_time", "update_time", "version"):
        record.ClearField(output)
    check_record(record, field)
    return record


def check_record(record: pb.Record, field: str) -> None:
    """Raises INVALID_REQUEST for a time that no store can keep, TOO_LARGE for too much metadata."""
    for name in ("create_time", "update_time", "expire_time"):
        try:
            getattr(record, name).ToDatetime() if record.HasField(name) else None
        except ValueError:
            raise invalid(f"{field}.{name}", "is not a time between the years 1 and 9999") from None
    if record.metadata.ByteSize() > MAX_METADATA_BYTES:
        raise AgentShellError(
            error_pb2.ERROR_REASON_TOO_LARGE,
            f"{field}.metadata has {record.metadata.ByteSize()} bytes, the limit is {MAX_METADATA_BYTES}: "
            "keep long texts in records of their own",
            metadata={"field": f"{field}.metadata", "limit_bytes": str(MAX_METADATA_BYTES)},
        )


def filter_of(request: pb.SearchRequest | pb.ListRequest | pb.ForgetRequest) -> Struct | None:
    """Returns what metadata must contain; None if it may be anything."""
    return request.filter if request.HasField("filter") else None


def once(request: Message, request_id: str) -> Once | None:
    """Returns what identifies the request's effect; None if it may happen again."""
    return Once(request_id, digest(request)) if request_id else None


def digest(request: Message) -> bytes:
    """Returns a digest that tells a request from any other, including another method's."""
    name = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + request.SerializeToString(deterministic=True)).digest()


def refuse_nul(request: Message) -> None:
    """Raises INVALID_REQUEST if a string contains a NUL, which Postgres cannot store."""
    if b"\0" not in request.SerializeToString():
        return
    for field, text in _strings(request, ""):
        if "\0" in text:
            raise invalid(field, "has a NUL (U+0000): leave it out")


def _strings(value: object, path: str) -> Generator[tuple[str, str]]:
    """Yields every string within a field's value, with its path."""
    match value:
        case str():
            yield path, value
        case Message():
            for field, child in value.ListFields():
                yield from _strings(child, f"{path}.{field.name}" if path else field.name)
        case Mapping():
            for key, child in cast("Mapping[str, object]", value).items():
                yield from _strings(key, path)
                yield from _strings(child, f"{path}.{key}")
        case Sequence() if not isinstance(value, bytes):
            for index, child in enumerate(cast("Sequence[object]", value)):
                yield from _strings(child, f"{path}[{index}]")
        case _:
            pass
