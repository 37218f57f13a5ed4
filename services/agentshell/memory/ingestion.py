"""Takes the documents of one stream in: apart into chunks, and into the store where they have changed."""

from __future__ import annotations

import asyncio

from agentshell.memory import chunking, embedding
from agentshell.memory.stores.store import Place, Store
from agentshell.mesh import ids
from agentshell.mesh.config import MemoryConfig
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import RECORD_KIND_CHUNK, IngestDocument, IngestResponse, Record, Source

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_DOCUMENT_CHUNKS = 50_000

_APART = {"text/markdown": chunking.markdown, "text/plain": chunking.plain}
# A chunk costs 0.02 ms to cut; between two slices others have their turn.
_SLICE = 100


class Ingestion:
    """Documents into a place: for each `begin` and then `add`, after the last `end`.

    `slots`, shared with other ingestions, bounds how many documents are written at once.
    """

    def __init__(self, config: MemoryConfig, store: Store, place: Place, slots: asyncio.Semaphore) -> None:
        self._config = config
        self._store = store
        self._place = place
        self._slots = slots
        self._document: IngestDocument | None = None
        self._content = bytearray()
        self._uris: set[str] = set()
        self._response = IngestResponse()

    async def begin(self, document: IngestDocument) -> None:
        """Ends the document before and begins another.

        Raises FEATURE_UNSUPPORTED for a media type without a way to take it apart, INVALID_REQUEST for a document that
        the stream has brought already, and what `add` and `end` raise.
        """
        await self._store_document()
        if _media_type(document) not in _APART:
            raise AgentShellError(
                error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED,
                f"document {document.source_uri!r} has media type {document.media_type!r}; "
                f"send one of {', '.join(_APART)}, in UTF-8",
                metadata={"feature": document.media_type, "source_uri": document.source_uri},
            )
        if document.source_uri in self._uris:
            raise invalid("document.source_uri", f"{document.source_uri!r} comes twice in the stream: send it once")
        self._uris.add(document.source_uri)
        self._document = document

    def add(self, content: bytes) -> None:
        """Adds bytes to the document. Raises TOO_LARGE, and INVALID_REQUEST where none has begun."""
        if self._document is None:
            raise invalid("content", "comes before any document: send `document` first")
        if len(self._content) + len(content) > MAX_DOCUMENT_BYTES:
            raise self._too_large(f"{MAX_DOCUMENT_BYTES} bytes")
        self._content += content

    async def end(self, replace_all: bool) -> IngestResponse:
        """Ends the last document, forgets what the stream has not brought where asked to, and returns the sums.

        Raises TOO_LARGE, and INVALID_REQUEST for a document that is not UTF-8 without NUL. Documents before it stay.
        """
        await self._store_document()
        if replace_all:
            self._response.forgotten_chunk_count += await self._store.forget_documents(self._place, self._uris)
        return self._response

    async def _store_document(self) -> None:
        if self._document is None:
            return
        uri = self._document.source_uri
        records = await self._take_apart(self._document)
        self._document, self._content = None, bytearray()
        self._response.document_count += 1
        # Ids are made of content, so a document with the same ones has not changed.
        if {record.record_id for record in records} == await self._store.chunk_ids(self._place, uri):
            self._response.unchanged_document_count += 1
            return
        async with self._slots:
            forgotten = await self._store.replace_document(self._place, uri, records, embedding.of_records(records))
        self._response.forgotten_chunk_count += forgotten
        self._response.written_chunk_count += len(records)

    async def _take_apart(self, document: IngestDocument) -> list[Record]:
        uri = document.source_uri
        chunks = _APART[_media_type(document)](
            self._text(uri), self._config.chunk_characters, self._config.chunk_overlap_characters
        )
        records: list[Record] = []
        for index, chunk in enumerate(chunks):
            if index == MAX_DOCUMENT_CHUNKS:
                raise self._too_large(f"{MAX_DOCUMENT_CHUNKS} chunks")
            if index % _SLICE == 0:
                await asyncio.sleep(0)
            records.append(
                Record(
                    record_id=ids.digest(uri, index, chunk.title, chunk.text),
                    kind=RECORD_KIND_CHUNK,
                    text=chunk.text,
                    source=Source(uri=uri, title=chunk.title, chunk_index=index),
                )
            )
        return records

    def _text(self, uri: str) -> str:
        try:
            text = self._content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise invalid("content", f"document {uri!r} is not UTF-8 at byte {error.start}") from None
        if "\0" in text:
            raise invalid("content", f"document {uri!r} has a NUL at character {text.index(chr(0))}: is it text?")
        return text

    def _too_large(self, limit: str) -> AgentShellError:
        uri = self._document.source_uri if self._document else ""
        return AgentShellError(
            error_pb2.ERROR_REASON_TOO_LARGE,
            f"document {uri!r} has more than {limit}: split it",
            metadata={"source_uri": uri, "limit_bytes": str(MAX_DOCUMENT_BYTES)},
        )


def _media_type(document: IngestDocument) -> str:
    return document.media_type.lower().replace(" ", "").removesuffix(";charset=utf-8")
