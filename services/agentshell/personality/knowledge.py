"""Ingests the packs' knowledge into memory in the background, and keeps it as the packs have it."""

from __future__ import annotations

import asyncio
import re
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
# Up to this many unanswered attempts, over some seconds, mean that memory starts after us; more mean a failure.
_ATTEMPTS_LOADING = 6
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


def namespace(personality_id: str, version: str = "") -> str:
    """Returns the namespace for a pack's knowledge: the default version's, or that of another `version` beside it."""
    return f"knowledge/{personality_id}" + (f":{_NOT_IN_NAMES.sub('-', version)}" if version else "")


class Knowledge:
    """Ingests what is wanted through the Memory service, until it succeeds. The latest call for a namespace counts."""

    def __init__(self, memory: grpc.aio.Channel) -> None:
        self._memory = memory_service_pb2_grpc.MemoryServiceStub(memory)
        self._shelves: dict[str, _Shelf] = {}
        self._due = asyncio.Queue[str]()  # Each name at most once.
        self._workers: list[asyncio.Task[None]] = []
        self._unready: set[str] = set()
        self._settled = asyncio.Event()
        self._settled.set()

    def want(self, name: str, pack: Pack) -> None:
        """Has the pack's knowledge ingested into a namespace, unless it is there; without any, drops the namespace."""
        if not pack.documents:
            self.drop(name)
            return
        shelf = self._shelves.setdefault(name, _Shelf())
        if shelf.digest == pack.knowledge_digest:
            return
        shelf.digest, shelf.documents, shelf.attempt = pack.knowledge_digest, pack.documents, 0
        self._set(name, shelf, personality_service_pb2.KNOWLEDGE_STATE_LOADING)
        self._put(name)

    def drop(self, name: str) -> None:
        """Stops ingesting into a namespace. What is in memory stays there, for turns pinned to the pack."""
        shelf = self._shelves.get(name)
        if shelf:
            shelf.digest, shelf.documents = "", ()
            self._set(name, shelf, personality_service_pb2.KNOWLEDGE_STATE_UNSPECIFIED)
            if not shelf.is_busy:
                self._remove(name)

    def state(self, name: str) -> KnowledgeState.ValueType:
        """Returns whether what is wanted in a namespace is in memory."""
        shelf = self._shelves.get(name)
        return shelf.state if shelf else personality_service_pb2.KNOWLEDGE_STATE_UNSPECIFIED

    async def ready(self) -> None:
        """Waits until all knowledge is in memory. That may be never: bound the wait."""
        await self._settled.wait()

    async def stop(self) -> None:
        """Cancels what is under way."""
        for shelf in self._shelves.values():
            shelf.stop_waiting()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _put(self, name: str) -> None:
        shelf = self._shelves[name]
        shelf.stop_waiting()
        if not shelf.is_due and not shelf.is_busy:  # A worker that is busy with it looks again.
            shelf.is_due = True
            self._due.put_nowait(name)
        if len(self._workers) < _INGESTS_AT_ONCE:
            self._workers.append(asyncio.create_task(self._work()))

    async def _work(self) -> None:
        while True:
            name = await self._due.get()
            shelf = self._shelves[name]
            shelf.is_due, shelf.is_busy = False, True
            digest = shelf.digest
            try:
                if digest:
                    await self._fill(name, shelf)
            finally:
                shelf.is_busy = False
            if not shelf.digest:
                self._remove(name)
            elif shelf.digest != digest:
                self._put(name)

    async def _fill(self, name: str, shelf: _Shelf) -> None:
        digest = shelf.digest
        try:
            response = await self._ingest(name, shelf.documents)
        except AgentShellError as error:
            if shelf.digest == digest:
                shelf.attempt += 1
                delay_seconds = self._failed(name, shelf, error)
                shelf.retry = asyncio.get_running_loop().call_later(delay_seconds, self._put, name)
            return
        if shelf.digest == digest:
            shelf.documents = ()  # Memory has them.
            self._set(name, shelf, personality_service_pb2.KNOWLEDGE_STATE_READY)
        log = _log.info if response.written_chunk_count else _log.debug  # Usually nothing has changed.
        log(
            "knowledge ingested",
            namespace=name,
            documents=response.document_count,
            unchanged_documents=response.unchanged_document_count,
            written_chunks=response.written_chunk_count,
        )

    def _failed(self, name: str, shelf: _Shelf, error: AgentShellError) -> float:
        """Notes a failed attempt. Returns the seconds until the next one."""
        if error.code in errors.TRANSIENT_CODES and shelf.attempt <= _ATTEMPTS_LOADING:
            return min(_FIRST_RETRY_SECONDS * 2 ** (shelf.attempt - 1), _LAST_RETRY_SECONDS)
        self._set(name, shelf, personality_service_pb2.KNOWLEDGE_STATE_FAILED)
        _log.warning(
            "knowledge not ingested",
            namespace=name,
            reason=error.name,
            message=error.message,
            retry_seconds=_LAST_RETRY_SECONDS,
            exc_info=error if error.reason == error_pb2.ERROR_REASON_INTERNAL else None,
        )
        return _LAST_RETRY_SECONDS

    async def _ingest(self, name: str, documents: tuple[Document, ...]) -> memory_service_pb2.IngestResponse:
        with call.scope(_OWNER, _INGEST_SECONDS):
            ingestion = self._memory.Ingest(_requests(name, documents), timeout=_INGEST_SECONDS)
            try:
                return await ingestion
            except Exception as error:
                raise errors.of(error) from error
            finally:
                ingestion.cancel()

    def _set(self, name: str, shelf: _Shelf, state: KnowledgeState.ValueType) -> None:
        shelf.state = state
        done = (personality_service_pb2.KNOWLEDGE_STATE_READY, personality_service_pb2.KNOWLEDGE_STATE_UNSPECIFIED)
        (self._unready.discard if state in done else self._unready.add)(name)
        (self._settled.clear if self._unready else self._settled.set)()

    def _remove(self, name: str) -> None:
        shelf = self._shelves[name]
        shelf.stop_waiting()
        if not shelf.is_due:
            del self._shelves[name]


class _Shelf:
    """What is wanted in one namespace, and its progress."""

    def __init__(self) -> None:
        self.digest = ""  # Of what is wanted; empty: nothing.
        self.documents: tuple[Document, ...] = ()
        self.state: KnowledgeState.ValueType = personality_service_pb2.KNOWLEDGE_STATE_UNSPECIFIED
        self.attempt = 0
        self.is_due = False
        self.is_busy = False
        self.retry: asyncio.TimerHandle | None = None

    def stop_waiting(self) -> None:
        if self.retry:
            self.retry.cancel()
            self.retry = None


def _requests(name: str, documents: tuple[Document, ...]) -> Iterator[memory_service_pb2.IngestRequest]:
    start = memory_service_pb2.IngestStart(namespace=name, replace_all=True)
    yield memory_service_pb2.IngestRequest(start=start)
    for document in documents:
        header = memory_service_pb2.IngestDocument(source_uri=document.path, media_type=document.media_type)
        yield memory_service_pb2.IngestRequest(document=header)
        for offset in range(0, len(document.content), _CONTENT_BYTES):
            yield memory_service_pb2.IngestRequest(content=document.content[offset : offset + _CONTENT_BYTES])
