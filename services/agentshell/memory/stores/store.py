"""The store port: where records, vectors and histories are kept. `tests/contract/memory/` is its meaning.

A store decides nothing about who may see what: it reads and writes the places that it is told, and no other. Effects
are atomic, and visible to the very next read. A record that has expired is not there.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from google.protobuf.struct_pb2 import Struct
from numpy.typing import NDArray

from agentshell.memory.recall import Weights
from kfm.content.v1.content_pb2 import Message
from kfm.memory.v1.memory_service_pb2 import (
    AppendMessagesResponse,
    BatchWriteResponse,
    ForgetRequest,
    ForgetResponse,
    Hit,
    Record,
)

Embedding: TypeAlias = NDArray[np.float32]


class Place(NamedTuple):
    """A namespace of a tenant."""

    tenant_id: str
    namespace: str


class Once(NamedTuple):
    """Names an effect that must happen once within 24 hours, and the digest of the request that asks for it.

    A write that repeats both gets the first answer; one that repeats the id alone raises REQUEST_ID_REUSED.
    """

    request_id: str
    digest: bytes


class Entry(NamedTuple):
    """A record to write. `embedding` is None where the text has nothing to compare by."""

    record: Record
    embedding: Embedding | None


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for; `embedding` and `text` are None where not to look that way.

    `containing`: only records whose metadata contains all of this, here and in `Store.list_records`.
    """

    places: Sequence[Place]
    text: str | None
    embedding: Embedding | None
    weights: Weights
    containing: Struct | None
    limit: int


class RecordPage(NamedTuple):
    """Records by id, each with its tenant, and whether there are more."""

    records: Sequence[tuple[str, Record]]
    has_more: bool


class MessagePage(NamedTuple):
    """The newest messages before a position, oldest first; the position of the first; whether there are older ones."""

    messages: Sequence[Message]
    first_position: int
    has_more: bool


class Store(Protocol):
    """Keeps what is remembered. Methods raise AgentShellError: the database's own reasons, and as each says."""

    async def write(
        self, place: Place, entries: Sequence[Entry], expected_version: int | None, once: Once | None
    ) -> BatchWriteResponse:
        """Writes records, all or none. The answer's records, in order, have id, times of writing and version alone.

        Raises VERSION_CONFLICT where a record is not at `expected_version` (0: is there).
        """
        ...

    async def search(self, query: Query) -> list[Hit]:
        """Returns the records that fit best, best first."""
        ...

    async def get(self, places: Sequence[Place], record_id: str) -> Record | None:
        """Returns the record of the first place that has it."""
        ...

    async def list_records(
        self, places: Sequence[Place], containing: Struct | None, after: tuple[str, str], limit: int, limit_bytes: int
    ) -> RecordPage:
        """Returns the records after the pair of a record id and a tenant, by these; at least one where there is one."""
        ...

    async def forget(self, place: Place, request: ForgetRequest, once: Once | None) -> ForgetResponse:
        """Forgets what the request names; with everything of a `session/<id>`, its history too."""
        ...

    async def chunk_ids(self, place: Place, source_uri: str) -> set[str]:
        """Returns the ids of the document's records, those left out that were written over since they were ingested."""
        ...

    async def replace_document(
        self, place: Place, source_uri: str, records: Sequence[Record], embeddings: AsyncIterable[Embedding | None]
    ) -> int:
        """Puts records, each with its embedding, in the place of all that the document had; returns how many it had."""
        ...

    async def forget_documents(self, place: Place, kept_uris: Collection[str]) -> int:
        """Forgets the records of all documents but those kept, and returns how many. Records of no document stay."""
        ...

    async def append_messages(
        self, tenant_id: str, session_id: str, messages: Sequence[Message], once: Once
    ) -> AppendMessagesResponse:
        """Adds messages to the end of a session's history, in order, whoever else appends."""
        ...

    async def list_messages(
        self, tenant_id: str, session_id: str, before: int | None, limit: int, limit_bytes: int
    ) -> MessagePage:
        """Returns the newest messages before a position (None: of all); at least one where there is one."""
        ...
