"""The Memory service: implements the contract over a store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc.aio

from agentshell.db.database import Connection, Database
from agentshell.memory import checks, expiry, listings, stats
from agentshell.memory.cache.cache import Cache
from agentshell.memory.cache.read_through import ReadThrough
from agentshell.memory.copies import Copies
from agentshell.memory.embedders.choice import Choice
from agentshell.memory.embedding import Embeddings
from agentshell.memory.forgetting import Forgetting
from agentshell.memory.ingestion import Ingestions
from agentshell.memory.searching import Searching, fitting
from agentshell.memory.stores import namespaces
from agentshell.memory.stores import once as effects
from agentshell.memory.stores.history import History
from agentshell.memory.stores.store import Once, Store
from agentshell.memory.summary import Check, Summaries
from agentshell.memory.window import Windows
from agentshell.mesh import call, paging
from agentshell.mesh.config import MemoryConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceServicer

# The most bytes of a page, so that its message stays under the mesh's 4 MiB.
MAX_PAGE_BYTES = 3 * 1024 * 1024
MAX_BATCH_BYTES = 3 * 1024 * 1024  # The answer contains the whole batch, and more.

_Context = grpc.aio.ServicerContext[Any, Any]


class MemoryService(MemoryServiceServicer):
    """Serves `kfm.memory.v1.MemoryService`. Each call reads and writes the caller's tenant.

    In namespaces `knowledge/*`, reads also see the shared tenant's records, which only that tenant writes.
    """

    def __init__(
        self,
        config: MemoryConfig,
        database: Database,
        store: Store,
        provider: grpc.aio.Channel | None = None,
        cache: Cache | None = None,
        choice: Choice | None = None,
    ) -> None:
        """`provider` is the channel to the Provider service, without which no vendor's model embeds or summarises.

        `choice` replaces the configuration's embedders.
        """
        self._config = config
        self._database = database
        self._store = store
        self._history = History(database)
        choice = choice or Choice(config, provider)
        self._embeddings = Embeddings(database, store, choice)
        summaries = Summaries(config, self._history, store, self._write, provider)
        self._windows = Windows(self._history, summaries)
        self._reads = ReadThrough(database, cache)
        self._searching = Searching(store, self._embeddings, self._reads)
        self._forgetting = Forgetting(database, store)
        self._copies = Copies(database, store, self._embeddings)
        self._ingestions = Ingestions(config, database, store, self._embeddings)

    async def Write(self, request: pb.WriteRequest, context: _Context) -> pb.WriteResponse:
        checks.refuse_nul(request)
        expected = request.expected_version if request.HasField("expected_version") else None
        records = [checks.to_write(request.record, "record")]
        written = await self._write(request.namespace, records, expected, checks.once(request, request.request_id))
        return pb.WriteResponse(record=written[0])

    async def BatchWrite(self, request: pb.BatchWriteRequest, context: _Context) -> pb.BatchWriteResponse:
        checks.refuse_nul(request)
        if request.ByteSize() > MAX_BATCH_BYTES:
            raise AgentShellError(
                error_pb2.ERROR_REASON_TOO_LARGE,
                f"the records take {request.ByteSize()} bytes, the limit is {MAX_BATCH_BYTES}: write fewer at once",
                metadata={"limit_bytes": str(MAX_BATCH_BYTES)},
            )
        records = [checks.to_write(record, f"records[{index}]") for index, record in enumerate(request.records)]
        written = await self._write(request.namespace, records, None, checks.once(request, request.request_id))
        return pb.BatchWriteResponse(records=written)

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:
        checks.refuse_nul(request)
        return await self._searching.search(request, MAX_PAGE_BYTES)

    async def Get(self, request: pb.GetRequest, context: _Context) -> pb.GetResponse:
        checks.refuse_nul(request)
        record = (await self._store.get(checks.readable(request.namespace), [request.record_id])).get(request.record_id)
        if record is None:
            raise AgentShellError(
                error_pb2.ERROR_REASON_RECORD_NOT_FOUND,
                f"namespace {request.namespace!r} has no record {request.record_id!r}; List lists its records",
                metadata={"namespace": request.namespace, "record_id": request.record_id},
            )
        return pb.GetResponse(record=record)

    async def BatchGet(self, request: pb.BatchGetRequest, context: _Context) -> pb.BatchGetResponse:
        checks.refuse_nul(request)
        record_ids = list(dict.fromkeys(request.record_ids))
        found = await self._store.get(checks.readable(request.namespace), record_ids)
        there = [record_id for record_id in record_ids if record_id in found]
        records = fitting([found[record_id] for record_id in there], MAX_PAGE_BYTES)
        return pb.BatchGetResponse(
            records=records,
            missing_record_ids=[record_id for record_id in record_ids if record_id not in found],
            left_record_ids=there[len(records) :],
        )

    async def List(self, request: pb.ListRequest, context: _Context) -> pb.ListResponse:
        checks.refuse_nul(request)
        limit = paging.page_size(request.page_size, default=50, most=500)
        listing, after = listings.of(request), listings.position(request)
        page = await self._store.list_records(listing, after, limit, MAX_PAGE_BYTES)
        response = pb.ListResponse(records=page.records)
        if page.has_more and page.last:
            response.next_page_token = listings.token(request, page.last)
        return response

    async def Forget(self, request: pb.ForgetRequest, context: _Context) -> pb.ForgetResponse:
        checks.refuse_nul(request)
        return await self._forgetting.forget(request)

    async def ForgetUser(self, request: pb.ForgetUserRequest, context: _Context) -> pb.ForgetUserResponse:
        checks.refuse_nul(request)
        return await self._forgetting.forget_user(request)

    async def ListReceipts(self, request: pb.ListReceiptsRequest, context: _Context) -> pb.ListReceiptsResponse:
        checks.refuse_nul(request)
        return await self._forgetting.receipts(request)

    async def Export(self, request: pb.ExportRequest, context: _Context) -> AsyncGenerator[pb.ExportResponse]:
        checks.refuse_nul(request)
        async with aclosing(self._copies.export(request)) as responses:
            async for response in responses:
                yield response

    async def Import(self, request_iterator: AsyncIterator[pb.ImportRequest], context: _Context) -> pb.ImportResponse:
        total = pb.ImportResponse()
        async for request in request_iterator:
            written = await self._copies.take(request.items)
            for field in pb.ImportResponse.DESCRIPTOR.fields:
                setattr(total, field.name, getattr(total, field.name) + getattr(written, field.name))
        return total

    async def Stats(self, request: pb.StatsRequest, context: _Context) -> pb.StatsResponse:
        checks.refuse_nul(request)
        return await stats.count(self._database, self._store, request)

    async def AppendMessages(self, request: pb.AppendMessagesRequest, context: _Context) -> pb.AppendMessagesResponse:
        # The messages themselves may contain any text: they are stored as they are.
        checks.refuse_nul(pb.AppendMessagesRequest(session_id=request.session_id, request_id=request.request_id))
        once = Once(request.request_id, checks.digest(request))
        for message in request.messages:
            if not message.HasField("create_time"):
                message.create_time.GetCurrentTime()
        return await self._history.append(call.tenant(), request.session_id, request.messages, request.user_id, once)

    async def ListMessages(self, request: pb.ListMessagesRequest, context: _Context) -> pb.ListMessagesResponse:
        checks.refuse_nul(request)
        limit = paging.page_size(request.page_size, default=50, most=500)
        (before,) = paging.decode(request, request.page_token, int) or (None,)
        # Not through the cache: checking whether anything has changed costs as much as reading.
        page = await self._history.list(call.tenant(), request.session_id, before, limit, MAX_PAGE_BYTES)
        response = pb.ListMessagesResponse(messages=page.messages)
        if page.has_more:
            response.next_page_token = paging.encode(request, page.first_position)
        return response

    async def GetWindow(self, request: pb.GetWindowRequest, context: _Context) -> pb.GetWindowResponse:
        checks.refuse_nul(request)
        place = checks.own(f"session/{request.session_id}")
        return await self._reads.read(
            [place],
            request,
            pb.GetWindowResponse,
            lambda: self._windows.get(call.tenant(), request, MAX_PAGE_BYTES),
            # A window that still lacks the requested summary is not cached.
            lambda made: not request.summarize or made.summarized_position >= made.first_position - 1,
        )

    async def Ingest(self, request_iterator: AsyncIterator[pb.IngestRequest], context: _Context) -> pb.IngestResponse:
        async with aclosing(self._ingestions.take(request_iterator)) as progress:
            async for told in progress:
                if isinstance(told, pb.IngestResponse):
                    return told
        raise AssertionError("an ingestion ends with its sums")

    async def IngestWithProgress(
        self, request_iterator: AsyncIterator[pb.IngestWithProgressRequest], context: _Context
    ) -> AsyncGenerator[pb.IngestWithProgressResponse]:
        parts = (request.part async for request in request_iterator)
        async with aclosing(self._ingestions.take(parts)) as progress:
            async for told in progress:
                if isinstance(told, pb.IngestedDocument):
                    yield pb.IngestWithProgressResponse(document=told)
                else:
                    yield pb.IngestWithProgressResponse(summary=told)

    async def _write(
        self,
        namespace: str,
        records: Sequence[pb.Record],
        expected_version: int | None,
        once: Once | None,
        check: Check | None = None,
    ) -> Sequence[pb.Record]:
        place = checks.own(namespace)
        expiry.apply(self._config, namespace, records)

        async def attempt() -> pb.BatchWriteResponse:
            spaces, entries = await self._embeddings.entries(place, records)

            async def effect(connection: Connection) -> pb.BatchWriteResponse:
                await namespaces.check(connection, place, spaces)
                if check is not None:
                    await check(connection)
                return await self._store.write(connection, place, entries, expected_version)

            return await effects.run(self._database, place, once, pb.BatchWriteResponse, effect)

        receipts = await self._embeddings.settled([place], attempt)
        # A receipt holds no text, so that nothing forgotten is kept for repeated requests, which contain it again.
        for record, receipt in zip(records, receipts.records, strict=True):
            record.MergeFrom(receipt)
        return records
