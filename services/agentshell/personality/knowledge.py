"""Brings the packs' knowledge into memory, in the background, and keeps it as the packs have it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc.aio
import structlog

from agentshell.mesh import call, errors
from agentshell.mesh.errors import AgentShellError
from agentshell.personality.pack import Document, Pack
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2, memory_service_pb2_grpc
from kfm.personality.v1 import personality_service_pb2
from kfm.personality.v1.personality_service_pb2 import KnowledgeState

_log = structlog.get_logger("agentshell.personality")

_OWNER = call.Principal(call.SHARED_TENANT, "personality")
_INGEST_SECONDS = 60.0
_CONTENT_BYTES = 256 * 1024
_INGESTS_AT_ONCE = 2
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0
# So many attempts that memory did not answer, some seconds, are a start in another order; more are a failure.
_ATTEMPTS_LOADING = 6


def namespace(personality_id: str) -> str:
    """Returns the namespace that holds a pack's knowledge."""
    return f"knowledge/{personality_id}"


class Knowledge:
    """Ingests what is wanted through the Memory service, again until it succeeds; the newest pack of an id counts."""

    def __init__(self, memory: grpc.aio.Channel) -> None:
        self._memory = memory_service_pb2_grpc.MemoryServiceStub(memory)
        self._shelves: dict[str, _Shelf] = {}
        self._turnstile = asyncio.Semaphore(_INGESTS_AT_ONCE)
        self._settled = asyncio.Event()
        self._settled.set()

    def want(self, pack: Pack) -> None:
        """Has the pack's knowledge ingested, unless it is there; a pack without knowledge wants none."""
        shelf = self._shelves.get(pack.personality_id)
        if not pack.documents:
            self.drop(pack.personality_id)
        elif shelf is None:
            self._shelves[pack.personality_id] = _Shelf(pack)
            self._shelves[pack.personality_id].task = asyncio.create_task(self._keep(pack.personality_id))
        elif shelf.pack.knowledge_digest != pack.knowledge_digest:
            shelf.pack = pack
            shelf.state = personality_service_pb2.KNOWLEDGE_STATE_LOADING
            shelf.changed.set()
        self._settle()

    def drop(self, personality_id: str) -> None:
        """Wants a pack's knowledge no more. What is in memory stays there, for turns pinned to the pack."""
        shelf = self._shelves.pop(personality_id, None)
        if shelf and shelf.task:
            shelf.task.cancel()
        self._settle()

    def state(self, personality_id: str) -> KnowledgeState.ValueType:
        """Returns whether a pack's knowledge is in memory."""
        shelf = self._shelves.get(personality_id)
        return shelf.state if shelf else personality_service_pb2.KNOWLEDGE_STATE_UNSPECIFIED

    async def ready(self) -> None:
        """Returns when all knowledge is in memory. That may be never: bound the wait."""
        await self._settled.wait()

    async def stop(self) -> None:
        """Ends what is under way."""
        tasks = [shelf.task for shelf in self._shelves.values() if shelf.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, personality_id: str) -> None:
        """Keeps a namespace as the newest pack has it: one ingestion at a time, so that the newest is the last."""
        shelf = self._shelves[personality_id]
        attempt = 0
        while True:
            try:
                async with self._turnstile:
                    shelf.changed.clear()
                    response = await self._ingest(shelf.pack)
            except AgentShellError as error:
                attempt += 1
                delay_seconds = self._failed(shelf, error, attempt)
            else:
                attempt, delay_seconds = 0, None
                self._succeeded(shelf, response)
            try:
                async with asyncio.timeout(delay_seconds):
                    await shelf.changed.wait()
            except TimeoutError:
                continue

    def _succeeded(self, shelf: _Shelf, response: memory_service_pb2.IngestResponse) -> None:
        if shelf.changed.is_set():
            return
        shelf.state = personality_service_pb2.KNOWLEDGE_STATE_READY
        self._settle()
        _log.info(
            "knowledge ingested",
            personality_id=shelf.pack.personality_id,
            documents=response.document_count,
            unchanged_documents=response.unchanged_document_count,
            written_chunks=response.written_chunk_count,
        )

    def _failed(self, shelf: _Shelf, error: AgentShellError, attempt: int) -> float:
        """Returns the seconds until the next attempt."""
        if error.code in errors.TRANSIENT_CODES and attempt <= _ATTEMPTS_LOADING:
            return min(_FIRST_RETRY_SECONDS * 2 ** (attempt - 1), _LAST_RETRY_SECONDS)
        shelf.state = personality_service_pb2.KNOWLEDGE_STATE_FAILED
        _log.warning(
            "knowledge not ingested",
            personality_id=shelf.pack.personality_id,
            reason=error.name,
            message=error.message,
            retry_seconds=_LAST_RETRY_SECONDS,
            exc_info=error if error.reason == error_pb2.ERROR_REASON_INTERNAL else None,
        )
        return _LAST_RETRY_SECONDS

    async def _ingest(self, pack: Pack) -> memory_service_pb2.IngestResponse:
        with call.scope(_OWNER, _INGEST_SECONDS):
            ingestion = self._memory.Ingest(_requests(pack.personality_id, pack.documents), timeout=_INGEST_SECONDS)
            try:
                return await ingestion
            except Exception as error:
                raise errors.of(error) from error
            finally:
                ingestion.cancel()

    def _settle(self) -> None:
        ready = personality_service_pb2.KNOWLEDGE_STATE_READY
        if all(shelf.state == ready for shelf in self._shelves.values()):
            self._settled.set()
        else:
            self._settled.clear()


class _Shelf:
    """What is wanted in one namespace, and how far that is."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.state: KnowledgeState.ValueType = personality_service_pb2.KNOWLEDGE_STATE_LOADING
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


def _requests(personality_id: str, documents: tuple[Document, ...]) -> Iterator[memory_service_pb2.IngestRequest]:
    start = memory_service_pb2.IngestStart(namespace=namespace(personality_id), replace_all=True)
    yield memory_service_pb2.IngestRequest(start=start)
    for document in documents:
        header = memory_service_pb2.IngestDocument(source_uri=document.path, media_type=document.media_type)
        yield memory_service_pb2.IngestRequest(document=header)
        for offset in range(0, len(document.content), _CONTENT_BYTES):
            yield memory_service_pb2.IngestRequest(content=document.content[offset : offset + _CONTENT_BYTES])
