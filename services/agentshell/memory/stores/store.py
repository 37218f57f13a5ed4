"""The store port: where records and their vectors are kept. `tests/contract/memory/` is its meaning.

A store decides nothing about who may see what: it reads and writes the places that it is told, and no other. Effects
are visible to the very next read. They come with the connection of the Postgres transaction that answers for them: a
transactional store makes them in it, another one within the locks that it takes there. A record that has expired is not
there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from google.protobuf.struct_pb2 import Struct
from numpy.typing import NDArray

from agentshell.db.database import Connection
from agentshell.memory.recall import Weights
from agentshell.memory.stores.abilities import Abilities
from agentshell.memory.stores.generations import State
from kfm.content.v1.content_pb2 import Message
from kfm.memory.v1.memory_service_pb2 import (
    BatchWriteResponse,
    ForgetRequest,
    NamespaceStats,
    Record,
    SearchResponse,
    StoredRecord,
)

# As precise as stores keep it, and of length 1.
Embedding: TypeAlias = NDArray[np.float16]


class Place(NamedTuple):
    """A namespace of a tenant."""

    tenant_id: str
    namespace: str

    @property
    def key(self) -> str:
        """Both in one word, which no other pair makes since a namespace has no space."""
        return f"{self.namespace} {self.tenant_id}"


class Once(NamedTuple):
    """Names an effect that must happen once within 24 hours, and the digest of the request that asks for it.

    A write that repeats both gets the first answer; one that repeats the id alone raises REQUEST_ID_REUSED.
    """

    request_id: str
    digest: bytes


class Entry(NamedTuple):
    """A record to write, with its vectors by slot (`Space`); None where the text has nothing to compare by."""

    record: Record
    embedding: Embedding | None
    embedding_2: Embedding | None = None


class Space(NamedTuple):
    """Vectors that compare: one embedder's, of one length, in one of the two slots (1, 2) that a record has."""

    embedder: str
    dimension: int
    slot: int = 1


class Spaces(NamedTuple):
    """What a place's vectors are of, and what they will be of once all of its records have one: writes make both."""

    current: Space
    next: Space | None = None


class SpaceChanged(Exception):  # noqa: N818 - no fault: it says what happened
    """A place's vectors are of another space than the caller took them for: it must find out and try again."""


class DocumentChanged(Exception):  # noqa: N818 - no fault: it says what happened
    """A document has no longer the chunks that it was found to have: look again, and try again."""


class Missing(NamedTuple):
    """A record without a vector in some slot, as it was when it was found."""

    record_id: str
    update_time: datetime
    title: str
    text: str


class Probe(NamedTuple):
    """Places whose vectors are of one space, and what to compare these with."""

    places: Sequence[Place]
    space: Space
    embedding: Embedding


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for, as kfm.memory.v1.SearchRequest says it; the fields with a value by default may be left out.

    `text` is None, and `probes` are none, where not to look that way. Scores of different probes do not compare: each
    is ranked by itself. `containing`: only records whose metadata contains all of this. `bare_places`: those that are
    taken to have no vectors yet.
    """

    places: Sequence[Place]
    text: str | None
    probes: Sequence[Probe]
    weights: Weights
    containing: Struct | None
    limit: int
    kinds: Sequence[int] = ()
    min_score: float | None = None
    diversity: float = 0.0
    half_life_seconds: float | None = None
    neighbour_count: int = 0
    bare_places: Sequence[Place] = ()


class Found(NamedTuple):
    """What a search answers, but for the embedder, and a state of its places that is no later than what it has read."""

    response: SearchResponse
    state: State


class Position(NamedTuple):
    """A record's place in an order: its time where that is by one, its id, its tenant."""

    time: datetime | None
    record_id: str
    tenant_id: str


class Listing(NamedTuple):
    """What to list: records whose metadata contains all of `containing`, of `kinds` where there are any, by `key`."""

    places: Sequence[Place]
    containing: Struct | None = None
    kinds: Sequence[int] = ()
    key: Literal["record_id", "create_time", "update_time"] = "record_id"
    descending: bool = False


class RecordPage(NamedTuple):
    """Records in their order, where the last of them is, and whether there are more."""

    records: Sequence[Record]
    last: Position | None
    has_more: bool


class Scope(NamedTuple):
    """What to copy of a tenant: whole namespaces and what names the user; where both are None: all of it."""

    tenant_id: str
    namespaces: Sequence[str] | None = None
    user_id: str | None = None


class MessagePage(NamedTuple):
    """The newest messages before a position, oldest first; the position of the first; whether there are older ones."""

    messages: Sequence[Message]
    first_position: int
    has_more: bool


class Vectors(Protocol):
    """The slots of a store's records, for what makes vectors anew. No method waits for those who write."""

    async def missing(
        self, connection: Connection, place: Place, slot: int, after: str, limit: int
    ) -> Sequence[Missing]:
        """Returns records without a vector in the slot, by id, after that of one."""
        ...

    async def fill(self, place: Place, slot: int, vectors: Sequence[tuple[Missing, Embedding]]) -> None:
        """Gives records their vectors in the slot; not those that were written, or forgotten, since they were found."""
        ...

    async def clear(self, place: Place, slot: int, after: str, limit: int) -> str | None:
        """Takes vectors in the slot away, by id, after that of one; returns the last id, or None at the end."""
        ...


class Store(Protocol):
    """Keeps what is remembered. Methods raise AgentShellError: the database's own reasons, and as each says."""

    abilities: Abilities

    @property
    def vectors(self) -> Vectors | None:
        """The slots; None where a namespace keeps the embedder that it begins with (`Abilities.is_reembedding`)."""
        ...

    async def prepare(self, space: Space) -> None:
        """Makes ready for the vectors of a space, again and again. Raises CONFIG_INVALID for a dimension too large."""
        ...

    async def write(
        self, connection: Connection, place: Place, entries: Sequence[Entry], expected_version: int | None
    ) -> BatchWriteResponse:
        """Writes records, all or none. The answer's records, in order, have id, times and version alone.

        Raises VERSION_CONFLICT where a record is not at `expected_version` (0: is there).
        """
        ...

    async def search(self, query: Query) -> Found:
        """Returns the records that fit best.

        Raises SpaceChanged where a place has vectors of another space than its probe's, or any and is said to be bare.
        """
        ...

    async def get(self, places: Sequence[Place], record_ids: Sequence[str]) -> Mapping[str, Record]:
        """Returns the records that there are, by id, each of the first place that has it."""
        ...

    async def list_records(self, listing: Listing, after: Position | None, limit: int, limit_bytes: int) -> RecordPage:
        """Returns the records after a position; at least one where there is one, and more while they fit the limits."""
        ...

    async def forget(self, connection: Connection, place: Place, request: ForgetRequest) -> int:
        """Forgets the records that the request names, and returns how many there were."""
        ...

    async def forget_user(
        self, connection: Connection, tenant_id: str, user_id: str, namespaces: Sequence[str]
    ) -> Mapping[str, int]:
        """Forgets whole namespaces, and what anywhere names the user; returns how many records each namespace had."""
        ...

    async def copy(self, scope: Scope, after: str, limit: int, limit_bytes: int) -> Sequence[tuple[str, StoredRecord]]:
        """Returns records, each with what asks for those after it; at least one where there is one. Their order is the
        store's own, and always the same.
        """
        ...

    async def restore(self, connection: Connection, place: Place, entries: Sequence[Entry]) -> int:
        """Writes records with the times and versions that they have, and returns how many that were.

        A record that is there at the same or a later version is left.
        """
        ...

    async def stats(self, tenant_id: str, namespace: str, after: str, limit: int) -> Sequence[NamespaceStats]:
        """Returns what the namespace holds, or where that is empty, each namespace after one, by name. Without what is
        not the store's: messages and embedders.
        """
        ...

    async def sweep(self, limit: int) -> int:
        """Takes away records that have expired, at most so many, and returns how many that were."""
        ...

    async def chunks(self, place: Place, source_uri: str) -> Mapping[str, int]:
        """Returns the ids of the document's records, and where each stands; not those written over since."""
        ...

    async def replace_document(
        self,
        connection: Connection,
        place: Place,
        source_uri: str,
        kept: Mapping[str, int],
        entries: Sequence[Entry],
    ) -> int:
        """Puts entries in the place of all that the document had but those kept, and returns how many it had of these.

        Of `kept`, ids of `chunks` with where each now stands, nothing else changes. Raises DocumentChanged where one is
        no longer there.
        """
        ...

    async def forget_documents(self, connection: Connection, place: Place, kept_uris: Collection[str]) -> int:
        """Forgets the records of all documents but those kept, and returns how many. Records of no document stay."""
        ...
