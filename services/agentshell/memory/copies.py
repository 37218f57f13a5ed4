"""Copies of memory: exported as a stream that can be resumed, and imported any number of times."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from agentshell.db.database import Database
from agentshell.memory import checks
from agentshell.memory.embedding import Embeddings
from agentshell.memory.forgetting import whole_namespaces
from agentshell.memory.stores import namespaces, sessions, wall
from agentshell.memory.stores.change import change
from agentshell.memory.stores.store import Entry, Place, Scope, Spaces, Store
from agentshell.mesh import call, paging
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb

# The most that an Export holds in memory at a time.
PAGE_ITEMS = 500
PAGE_BYTES = 2 * 1024 * 1024

_RECORDS, _MESSAGES = "records", "messages"


class _Cursor(NamedTuple):
    """Where to resume: after the store's own cursor among records, or after a session and position among messages."""

    kind: str
    after: str = ""
    position: int = 0


class Copies:
    """Exports a tenant's memory and imports it."""

    def __init__(self, database: Database, store: Store, embeddings: Embeddings) -> None:
        self._database = database
        self._store = store
        self._embeddings = embeddings

    async def export(self, request: pb.ExportRequest) -> AsyncGenerator[pb.ExportResponse]:
        """Yields records, then messages, page by page, as they are when each page is read.

        Writes during the export may or may not be included. Raises CURSOR_INVALID.
        """
        cursor, scope = _decode(request), await self._scope(request)
        if cursor.kind == _RECORDS:
            while records := await self._store.copy(scope, cursor.after, PAGE_ITEMS, PAGE_BYTES):
                for after, record in records:
                    cursor = _Cursor(_RECORDS, after)
                    yield pb.ExportResponse(item=pb.Item(record=record), cursor=paging.encode(request, *cursor))
            cursor = _Cursor(_MESSAGES)
        while messages := await self._messages(scope, cursor):
            for message in messages:
                cursor = _Cursor(_MESSAGES, message.session_id, message.position)
                yield pb.ExportResponse(item=pb.Item(message=message), cursor=paging.encode(request, *cursor))

    async def take(self, items: Sequence[pb.Item]) -> pb.ImportResponse:
        """Writes the exported items that do not exist yet, all or none, and reports what it wrote.

        Embeds the records again. Raises INVALID_REQUEST, TOO_LARGE and what the embedder raises.
        """
        records, messages = _by_place(items)
        places = [*records, *messages]

        async def attempt() -> pb.ImportResponse:
            made = {place: await self._entries(place, given) for place, given in records.items()}
            response = pb.ImportResponse()
            async with change(self._database, *places) as connection:
                for place, (spaces, _) in made.items():
                    await namespaces.check(connection, place, spaces)
                for place, (_, entries) in made.items():
                    response.record_count += await self._store.restore(connection, place, entries)
                for place, history in messages.items():
                    session_id = place.namespace.removeprefix(sessions.PREFIX)
                    response.message_count += await sessions.restore(connection, place.tenant_id, session_id, history)
            return response

        response = await self._embeddings.settled(places, attempt)
        response.unchanged_record_count = sum(map(len, records.values())) - response.record_count
        response.unchanged_message_count = sum(map(len, messages.values())) - response.message_count
        return response

    async def _scope(self, request: pb.ExportRequest) -> Scope:
        tenant_id = call.tenant()
        match request.WhichOneof("what"):
            case "user_id":
                async with wall.reading(self._database) as connection:
                    session_ids = await sessions.of_user(connection, tenant_id, request.user_id)
                return Scope(tenant_id, whole_namespaces(request.user_id, session_ids), request.user_id)
            case "namespace":
                return Scope(tenant_id, [request.namespace])
            case _:
                return Scope(tenant_id)

    async def _messages(self, scope: Scope, cursor: _Cursor) -> Sequence[pb.StoredMessage]:
        async with wall.reading(self._database) as connection:
            return await sessions.copy(connection, scope, (cursor.after, cursor.position), PAGE_ITEMS, PAGE_BYTES)

    async def _entries(self, place: Place, given: Sequence[pb.Record]) -> tuple[Spaces, list[Entry]]:
        """Returns the records that do not exist yet, with vectors: a repeated import embeds nothing."""
        found = await self._store.get([place], [record.record_id for record in given])
        there = {record_id: record.version for record_id, record in found.items()}
        return await self._embeddings.entries(
            place, [record for record in given if there.get(record.record_id, 0) < record.version]
        )


def _by_place(
    items: Sequence[pb.Item],
) -> tuple[dict[Place, list[pb.Record]], dict[Place, list[pb.StoredMessage]]]:
    """Returns records and messages by place, in one order for all imports, so that no two wait for each other.

    Raises INVALID_REQUEST and TOO_LARGE.
    """
    records: dict[Place, list[pb.Record]] = {}
    messages: dict[Place, list[pb.StoredMessage]] = {}
    for index, item in enumerate(items):
        if item.HasField("message"):
            place = checks.own(f"{sessions.PREFIX}{item.message.session_id}")
            messages.setdefault(place, []).append(item.message)
        else:
            record = _checked(item.record, f"items[{index}].record")
            records.setdefault(checks.own(item.record.namespace), []).append(record)
    return dict(sorted(records.items())), dict(sorted(messages.items()))


def _checked(stored: pb.StoredRecord, field: str) -> pb.Record:
    """Returns the record with its missing fields filled in, as by a first write now."""
    checks.refuse_nul(stored)
    record = stored.record
    if not record.record_id:
        raise invalid(f"{field}.record.record_id", "is empty: an import names each record")
    checks.check_record(record, f"{field}.record")
    record.kind = record.kind or pb.RECORD_KIND_FACT
    record.version = max(1, record.version)
    if not record.HasField("create_time"):
        record.create_time.GetCurrentTime()
    if not record.HasField("update_time"):
        record.update_time.CopyFrom(record.create_time)
    return record


def _decode(request: pb.ExportRequest) -> _Cursor:
    try:
        decoded = paging.decode(request, request.cursor, str, str, int)
    except AgentShellError:
        problem = "was not given by an Export of this request: repeat that one, or leave the cursor empty to start over"
        raise AgentShellError(
            error_pb2.ERROR_REASON_CURSOR_INVALID, f"cursor {problem}", violations=[("cursor", problem)]
        ) from None
    return _Cursor(*decoded) if decoded else _Cursor(_RECORDS)
