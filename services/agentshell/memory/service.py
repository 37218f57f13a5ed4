"""The Memory service: what the contract says, over a store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from typing import Any, cast

import grpc.aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.struct_pb2 import Struct

from agentshell.memory import embedding, recall
from agentshell.memory.ingestion import Ingestion
from agentshell.memory.stores.store import Entry, Once, Place, Query, Store
from agentshell.mesh import call, ids, paging
from agentshell.mesh.config import MemoryConfig
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceServicer

MAX_METADATA_BYTES = 64 * 1024
# A page ends before it is larger than this, so that its message stays under the mesh's 4 MiB.
MAX_PAGE_BYTES = 3 * 1024 * 1024

_DOCUMENTS_AT_ONCE = 4
_SHARED_PREFIX = "knowledge/"

_Context = grpc.aio.ServicerContext[Any, Any]


class MemoryService(MemoryServiceServicer):
    """Serves `kfm.memory.v1.MemoryService`. Each call reads and writes the caller's tenant.

    In namespaces `knowledge/*` reads see the shared tenant's records too; nobody else writes these.
    """

    def __init__(self, config: MemoryConfig, store: Store) -> None:
        self._config = config
        self._store = store
        # A document under way holds a connection; the others wait here, as long as their deadlines let them.
        self._documents = asyncio.Semaphore(_DOCUMENTS_AT_ONCE)

    async def Write(self, request: pb.WriteRequest, context: _Context) -> pb.WriteResponse:
        _refuse_nul(request)
        expected = request.expected_version if request.HasField("expected_version") else None
        records = [_to_write(request.record, "record")]
        written = await self._write(request.namespace, records, expected, _once(request, request.request_id))
        return pb.WriteResponse(record=written[0])

    async def BatchWrite(self, request: pb.BatchWriteRequest, context: _Context) -> pb.BatchWriteResponse:
        _refuse_nul(request)
        records = [_to_write(record, f"records[{index}]") for index, record in enumerate(request.records)]
        written = await self._write(request.namespace, records, None, _once(request, request.request_id))
        return pb.BatchWriteResponse(records=written)

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:
        _refuse_nul(request)
        weights = recall.weights(request.mode)
        query = Query(
            places=[place for namespace in dict.fromkeys(request.namespaces) for place in _readable(namespace)],
            text=request.query if weights.text else None,
            embedding=embedding.of_query(request.query) if weights.vector else None,
            weights=weights,
            containing=_filter(request),
            limit=request.limit or recall.DEFAULT_LIMIT,
        )
        return pb.SearchResponse(hits=_fitting(await self._store.search(query)), embedder=embedding.NAME)

    async def Get(self, request: pb.GetRequest, context: _Context) -> pb.GetResponse:
        _refuse_nul(request)
        record = await self._store.get(_readable(request.namespace), request.record_id)
        if record is None:
            raise AgentShellError(
                error_pb2.ERROR_REASON_RECORD_NOT_FOUND,
                f"namespace {request.namespace!r} has no record {request.record_id!r}",
                metadata={"namespace": request.namespace, "record_id": request.record_id},
            )
        return pb.GetResponse(record=record)

    async def List(self, request: pb.ListRequest, context: _Context) -> pb.ListResponse:
        _refuse_nul(request)
        limit = paging.page_size(request.page_size, default=50, most=500)
        after_id, after_tenant = paging.decode(request, request.page_token, str, str) or ("", "")
        page = await self._store.list_records(
            _readable(request.namespace), _filter(request), (after_id, after_tenant), limit, MAX_PAGE_BYTES
        )
        response = pb.ListResponse(records=[record for _, record in page.records])
        if page.has_more:
            last_tenant, last = page.records[-1]
            response.next_page_token = paging.encode(request, last.record_id, last_tenant)
        return response

    async def Forget(self, request: pb.ForgetRequest, context: _Context) -> pb.ForgetResponse:
        _refuse_nul(request)
        return await self._store.forget(_own(request.namespace), request, _once(request, request.request_id))

    async def AppendMessages(self, request: pb.AppendMessagesRequest, context: _Context) -> pb.AppendMessagesResponse:
        # The messages themselves may hold any text: they are kept as they are.
        _refuse_nul(pb.AppendMessagesRequest(session_id=request.session_id, request_id=request.request_id))
        once = Once(request.request_id, _digest(request))
        for message in request.messages:
            if not message.HasField("create_time"):
                message.create_time.GetCurrentTime()
        return await self._store.append_messages(call.tenant(), request.session_id, request.messages, once)

    async def ListMessages(self, request: pb.ListMessagesRequest, context: _Context) -> pb.ListMessagesResponse:
        _refuse_nul(request)
        limit = paging.page_size(request.page_size, default=50, most=500)
        (before,) = paging.decode(request, request.page_token, int) or (None,)
        page = await self._store.list_messages(call.tenant(), request.session_id, before, limit, MAX_PAGE_BYTES)
        response = pb.ListMessagesResponse(messages=page.messages)
        if page.has_more:
            response.next_page_token = paging.encode(request, page.first_position)
        return response

    async def Ingest(self, request_iterator: AsyncIterator[pb.IngestRequest], context: _Context) -> pb.IngestResponse:
        first = await anext(request_iterator, pb.IngestRequest())
        if not first.HasField("start"):
            raise invalid("start", "the stream must begin with it")
        ingestion = Ingestion(self._config, self._store, _own(first.start.namespace), self._documents)
        async for request in request_iterator:
            match request.WhichOneof("part"):
                case "document":
                    _refuse_nul(request)
                    await ingestion.begin(request.document)
                case "content":
                    ingestion.add(request.content)
                case _:
                    raise invalid("start", "comes again: one stream has one")
        return await ingestion.end(first.start.replace_all)

    async def _write(
        self, namespace: str, records: Sequence[pb.Record], expected_version: int | None, once: Once | None
    ) -> Sequence[pb.Record]:
        embeddings = [vector async for vector in embedding.of_records(records)]
        entries = [Entry(record, vector) for record, vector in zip(records, embeddings, strict=True)]
        receipts = await self._store.write(_own(namespace), entries, expected_version, once)
        # A receipt holds no text, so that nothing forgotten is kept for repeated requests: they bring it again.
        for record, receipt in zip(records, receipts.records, strict=True):
            record.MergeFrom(receipt)
        return records


def _own(namespace: str) -> Place:
    return Place(call.tenant(), namespace)


def _readable(namespace: str) -> list[Place]:
    """Returns where the caller may read a namespace: at home first, then among what all tenants share."""
    places = [_own(namespace)]
    if namespace.startswith(_SHARED_PREFIX) and call.tenant() != call.SHARED_TENANT:
        places.append(Place(call.SHARED_TENANT, namespace))
    return places


def _to_write(given: pb.Record, field: str) -> pb.Record:
    """Returns the record as it will be written. Raises INVALID_REQUEST and TOO_LARGE."""
    record = pb.Record()
    record.CopyFrom(given)
    record.record_id = record.record_id or ids.ulid()
    record.kind = record.kind or pb.RECORD_KIND_FACT
    for output in ("create_time", "update_time", "version"):
        record.ClearField(output)
    try:
        record.expire_time.ToDatetime() if record.HasField("expire_time") else None
    except ValueError:
        raise invalid(f"{field}.expire_time", "is not a time between the years 1 and 9999") from None
    _check_struct(record.metadata, f"{field}.metadata")
    if record.metadata.ByteSize() > MAX_METADATA_BYTES:
        raise AgentShellError(
            error_pb2.ERROR_REASON_TOO_LARGE,
            f"{field}.metadata has {record.metadata.ByteSize()} bytes, more than {MAX_METADATA_BYTES}",
            metadata={"field": f"{field}.metadata", "limit_bytes": str(MAX_METADATA_BYTES)},
        )
    return record


def _filter(request: pb.SearchRequest | pb.ListRequest) -> Struct | None:
    if not request.HasField("filter"):
        return None
    _check_struct(request.filter, "filter")
    return request.filter


def _check_struct(struct: Struct, field: str) -> None:
    try:
        MessageToDict(struct)
    except ValueError:
        raise invalid(field, "has a number that JSON does not have: NaN or an infinity") from None


def _once(request: ProtobufMessage, request_id: str) -> Once | None:
    return Once(request_id, _digest(request)) if request_id else None


def _digest(request: ProtobufMessage) -> bytes:
    name = request.DESCRIPTOR.full_name.encode()  # So that one id is not used for calls of two methods.
    return hashlib.sha256(name + request.SerializeToString(deterministic=True)).digest()


def _fitting(hits: Sequence[pb.Hit]) -> Sequence[pb.Hit]:
    """Returns the first hits, as many as a message may hold."""
    total_bytes = 0
    for index, hit in enumerate(hits):
        total_bytes += hit.ByteSize()
        if total_bytes > MAX_PAGE_BYTES:
            return hits[:index]
    return hits


def _refuse_nul(request: ProtobufMessage) -> None:
    """Raises INVALID_REQUEST where a string has a NUL, which no database keeps."""
    if b"\0" not in request.SerializeToString():
        return
    for field, text in _strings(request, ""):
        if "\0" in text:
            raise invalid(field, "has a NUL (U+0000): leave it out")


def _strings(value: object, path: str) -> Generator[tuple[str, str]]:
    """Yields the strings anywhere within a field's value, each with its path."""
    match value:
        case str():
            yield path, value
        case ProtobufMessage():
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
