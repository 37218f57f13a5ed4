"""Ingests the documents of a stream: splits them into chunks, and stores the chunks that have changed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from agentshell.db.database import Database
from agentshell.memory import checks, expiry
from agentshell.memory.chunking import Chunk
from agentshell.memory.documents import formats, reading
from agentshell.memory.documents.block import MalformedDocument
from agentshell.memory.documents.reading import TooManyChunks
from agentshell.memory.embedding import Embeddings
from agentshell.memory.stores import namespaces
from agentshell.memory.stores.change import change
from agentshell.memory.stores.store import DocumentChanged, Place, Store
from agentshell.mesh import ids
from agentshell.mesh.config import MemoryConfig
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024

# A document being ingested holds a connection and all of its chunks; others wait as long as their deadlines let them.
_DOCUMENTS_AT_ONCE = 4
# Attempts at a document that others ingest at the same time.
_ATTEMPTS = 5


class Ingestions:
    """Ingests a service's streams of documents."""

    def __init__(self, config: MemoryConfig, database: Database, store: Store, embeddings: Embeddings) -> None:
        self.config = config
        self.database = database
        self.store = store
        self.embeddings = embeddings
        self.slots = asyncio.Semaphore(_DOCUMENTS_AT_ONCE)

    async def take(
        self, requests: AsyncIterator[pb.IngestRequest]
    ) -> AsyncGenerator[pb.IngestedDocument | pb.IngestResponse]:
        """Yields the outcome of each document in a stream, as soon as it is stored, and finally the totals.

        Raises FEATURE_UNSUPPORTED for an unsupported media type, TOO_LARGE, and INVALID_REQUEST for a stream out of
        order or a document that cannot be read. Earlier documents stay.
        """
        first = await anext(requests, pb.IngestRequest())
        if not first.HasField("start"):
            raise invalid("start", "the stream must begin with it")
        checks.refuse_nul(first)
        stream = _Stream(self, checks.own(first.start.namespace))
        async for request in requests:
            match request.WhichOneof("part"):
                case "document":
                    checks.refuse_nul(request)
                    if done := await stream.end_document():
                        yield done
                    stream.begin_document(request.document)
                case "content":
                    stream.add(request.content)
                case _:
                    raise invalid("start", "comes a second time: a stream has only one")
        if done := await stream.end_document():
            yield done
        yield await stream.end(first.start.replace_all)


class _Stream:
    """Ingests documents into a place: `begin_document`, `add` and `end_document` for each, then `end`."""

    def __init__(self, shared: Ingestions, place: Place) -> None:
        self._shared = shared
        self._place = place
        self._document: pb.IngestDocument | None = None
        self._content = bytearray()
        self._uris: set[str] = set()
        self._response = pb.IngestResponse()

    def begin_document(self, document: pb.IngestDocument) -> None:
        uri = document.source_uri
        if formats.media_type(document.media_type) not in formats.MEDIA_TYPES:
            raise AgentShellError(
                error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED,
                f"document {uri!r} has media type {document.media_type!r}; "
                f"send one of {', '.join(formats.MEDIA_TYPES)}; texts in UTF-8",
                metadata={"feature": document.media_type, "source_uri": uri},
            )
        if uri in self._uris:
            raise invalid("document.source_uri", f"{uri!r} comes twice in the stream: send it once")
        self._uris.add(uri)
        self._document = document

    def add(self, content: bytes) -> None:
        if self._document is None:
            raise invalid("content", "comes before any document: send `document` first")
        if len(self._content) + len(content) > MAX_DOCUMENT_BYTES:
            raise _too_large(self._document.source_uri, MAX_DOCUMENT_BYTES, "bytes")
        self._content += content

    async def end_document(self) -> pb.IngestedDocument | None:
        """Stores the document and returns its outcome, or None if none has begun."""
        if self._document is None:
            return None
        document, content = self._document, bytes(self._content)
        self._document, self._content = None, bytearray()
        async with self._shared.slots:
            records = _records(document.source_uri, await self._chunks(document, content))
            done = await self._shared.embeddings.settled(
                [self._place], lambda: self._replace(document.source_uri, records)
            )
        self._response.document_count += 1
        self._response.unchanged_document_count += done.unchanged
        self._response.written_chunk_count += done.written_chunk_count
        self._response.forgotten_chunk_count += done.forgotten_chunk_count
        return done

    async def end(self, replace_all: bool) -> pb.IngestResponse:
        """Forgets documents that were not in the stream, if asked to, and returns the totals."""
        if replace_all:
            async with change(self._shared.database, self._place) as connection:
                forgotten = await self._shared.store.forget_documents(connection, self._place, self._uris)
            self._response.forgotten_chunk_count += forgotten
        return self._response

    async def _chunks(self, document: pb.IngestDocument, content: bytes) -> list[Chunk]:
        config, uri = self._shared.config, document.source_uri
        try:
            return await reading.read(
                formats.media_type(document.media_type),
                content,
                config.chunk_characters,
                config.chunk_overlap_characters,
            )
        except MalformedDocument as error:
            raise invalid("content", f"document {uri!r} {error}") from error
        except TooManyChunks:
            raise _too_large(uri, reading.MAX_CHUNKS, "chunks") from None

    async def _replace(self, uri: str, records: Mapping[str, pb.Record]) -> pb.IngestedDocument:
        """Writes the chunks that the place lacks, and forgets those that the document no longer has."""
        shared, place = self._shared, self._place
        for _ in range(_ATTEMPTS):
            there = await shared.store.chunks(place, uri)
            kept = {name: record.source.chunk_index for name, record in records.items() if name in there}
            if kept == there and len(kept) == len(records):
                return pb.IngestedDocument(source_uri=uri, unchanged=True, unchanged_chunk_count=len(kept))
            new = [record for name, record in records.items() if name not in there]
            expiry.apply(shared.config, place.namespace, new)
            spaces, entries = await shared.embeddings.entries(place, new)
            try:
                async with change(shared.database, place) as connection:
                    await namespaces.check(connection, place, spaces)
                    forgotten = await shared.store.replace_document(connection, place, uri, kept, entries)
            except DocumentChanged:
                continue
            return pb.IngestedDocument(
                source_uri=uri,
                written_chunk_count=len(new),
                unchanged_chunk_count=len(kept),
                forgotten_chunk_count=forgotten,
            )
        raise AgentShellError(
            error_pb2.ERROR_REASON_OVERLOADED,
            f"document {uri!r} keeps being changed by others: ingest it again, from one place",
            metadata={"source_uri": uri},
        )


def _records(uri: str, chunks: list[Chunk]) -> Mapping[str, pb.Record]:
    """Returns the records of chunks by id. Ids are made from the content, so an unchanged chunk keeps its id."""
    records: dict[str, pb.Record] = {}
    occurrences: Counter[tuple[str, str]] = Counter()
    for index, chunk in enumerate(chunks):
        said = (chunk.title, chunk.text)
        name = ids.digest(uri, *said, occurrences[said])
        occurrences[said] += 1
        source = pb.Source(uri=uri, title=chunk.title, chunk_index=index)
        records[name] = pb.Record(record_id=name, kind=pb.RECORD_KIND_CHUNK, text=chunk.text, source=source)
    return records


def _too_large(uri: str, most: int, unit: str) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_TOO_LARGE,
        f"document {uri!r} has more than {most} {unit}: split it",
        metadata={"source_uri": uri, f"limit_{unit}": str(most)},
    )
