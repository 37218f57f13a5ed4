"""The store port: where records and their vectors are kept. `tests/contract/memory/` defines what it means.

A store does not decide who may see what: it reads and writes the places it is given, and no others. Effects are visible
to the very next read. A method that has effects is given the connection of the Postgres transaction responsible for
them: a transactional store makes them in it, any other within the locks that it takes there. To every method, an
expired record does not exist.
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

# As precise as stores keep it, and normalised to length 1.
Embedding: TypeAlias = NDArray[np.float16]


class Place(NamedTuple):
    """A namespace of a tenant."""

    tenant_id: str
    namespace: str

    @property
    def key(self) -> str:
        """Both in one string, which is unambiguous because a namespace contains no space."""
        return f"{self.namespace} {self.tenant_id}"


class Once(NamedTuple):
    """The id of an effect that must happen once within 24 hours, and the digest of the request for it.

    A request that repeats both gets the first answer; one that repeats only the id raises REQUEST_ID_REUSED.
    """

    request_id: str
    digest: bytes


class Entry(NamedTuple):
    """A record to write, with its vectors by slot (`Space`); None in an unused slot, or if its text has none."""

    record: Record
    embedding: Embedding | None
    embedding_2: Embedding | None = None


class Space(NamedTuple):
    """Vectors that can be compared: one embedder's, of one length, in one of a record's two slots (1, 2)."""

    embedder: str
    dimension: int
    slot: int = 1


class Spaces(NamedTuple):
    """The space of a place's vectors, and the next one, which is used once every record is in it: writes fill both."""

    current: Space
    next: Space | None = None


class SpaceChanged(Exception):  # noqa: N818 - not an error: it says what happened
    """A place's vectors are in another space than the caller assumed: it must look again and retry."""


class DocumentChanged(Exception):  # noqa: N818 - not an error: it says what happened
    """A document no longer has the chunks that were found: the caller must look again and retry."""


class Missing(NamedTuple):
    """A record without a vector in some slot, as it was when it was found."""

    record_id: str
    update_time: datetime
    title: str
    text: str


class Probe(NamedTuple):
    """Places whose vectors are in one space, and the vector to compare them with."""

    places: Sequence[Place]
    space: Space
    embedding: Embedding


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for, in the terms of kfm.memory.v1.SearchRequest.

    Without `text`, nothing is searched by words; without `probes`, nothing by vector. Scores of different probes cannot
    be compared, so each probe is ranked by itself. `containing`: only records whose metadata contains all of this.
    `bare_places`: those assumed to have no vectors yet.
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
    """A search's answer, except for the embedder, and a state of its places that is no later than what it read."""

    response: SearchResponse
    state: State


class Position(NamedTuple):
    """Where a record is in an order: its time if the order is by time, its id, its tenant."""

    time: datetime | None
    record_id: str
    tenant_id: str


class Listing(NamedTuple):
    """What to list: records whose metadata contains all of `containing`, of `kinds` if any are given, by `key`."""

    places: Sequence[Place]
    containing: Struct | None = None
    kinds: Sequence[int] = ()
    key: Literal["record_id", "create_time", "update_time"] = "record_id"
    descending: bool = False


class RecordPage(NamedTuple):
    """Records in their order, the position of the last one, and whether there are more."""

    records: Sequence[Record]
    last: Position | None
    has_more: bool


class Scope(NamedTuple):
    """What to copy of a tenant: whole namespaces, and records that name the user; everything if both are None."""

    tenant_id: str
    namespaces: Sequence[str] | None = None
    user_id: str | None = None


class MessagePage(NamedTuple):
    """The newest messages before a position, oldest first; the position of the first; whether there are older ones."""

    messages: Sequence[Message]
    first_position: int
    has_more: bool


class Vectors(Protocol):
    """The slots of a store's records, for re-embedding. No method waits for writers."""

    async def missing(
        self, connection: Connection, place: Place, slot: int, after: str, limit: int
    ) -> Sequence[Missing]:
        """Returns records without a vector in the slot, by id, after the id `after`."""
        ...

    async def fill(self, place: Place, slot: int, vectors: Sequence[tuple[Missing, Embedding]]) -> None:
        """Sets records' vectors in the slot, except for records written or forgotten since they were found."""
        ...

    async def clear(self, place: Place, slot: int, after: str, limit: int) -> str | None:
        """Removes vectors from the slot, by id, after the id `after`; returns the last id, or None at the end."""
        ...


class Store(Protocol):
    """Keeps what is remembered. Methods raise AgentShellError with the database's reasons, and as documented."""

    abilities: Abilities

    @property
    def vectors(self) -> Vectors | None:
        """The slots; None if namespaces keep their first embedder (not `Abilities.is_reembedding`)."""
        ...

    async def prepare(self, space: Space) -> None:
        """Prepares for the vectors of a space; may be repeated. Raises CONFIG_INVALID for too large a dimension."""
        ...

    async def write(
        self, connection: Connection, place: Place, entries: Sequence[Entry], expected_version: int | None
    ) -> BatchWriteResponse:
        """Writes records, all or none. The answer's records, in order, have only id, times and version.

        Raises VERSION_CONFLICT if a record is not at `expected_version` (0: if it exists).
        """
        ...

    async def search(self, query: Query) -> Found:
        """Returns the best matching records.

        Raises SpaceChanged if a place's vectors are in another space than its probe's, or if a bare place has any.
        """
        ...

    async def get(self, places: Sequence[Place], record_ids: Sequence[str]) -> Mapping[str, Record]:
        """Returns the records that exist, by id, each from the first place that has it."""
        ...

    async def list_records(self, listing: Listing, after: Position | None, limit: int, limit_bytes: int) -> RecordPage:
        """Returns the records after a position: at least one if there is one, and more while they fit the limits."""
        ...

    async def forget(self, connection: Connection, place: Place, request: ForgetRequest) -> int:
        """Forgets the records that the request names, and returns how many there were."""
        ...

    async def forget_user(
        self, connection: Connection, tenant_id: str, user_id: str, namespaces: Sequence[str]
    ) -> Mapping[str, int]:
        """Forgets whole namespaces, and records anywhere that name the user; returns how many each namespace lost."""
        ...

    async def copy(self, scope: Scope, after: str, limit: int, limit_bytes: int) -> Sequence[tuple[str, StoredRecord]]:
        """Returns records, each with the cursor for those after it; at least one record if there is one.

        Their order is the store's own, and always the same.
        """
        ...

    async def restore(self, connection: Connection, place: Place, entries: Sequence[Entry]) -> int:
        """Writes records with the times and versions that they have, and returns how many it wrote.

        A record that exists at the same or a later version is left alone.
        """
        ...

    async def stats(self, tenant_id: str, namespace: str, after: str, limit: int) -> Sequence[NamespaceStats]:
        """Returns what the namespace holds or, if `namespace` is empty, what each one after `after` holds, by name.

        Leaves out what is not the store's: messages and embedders.
        """
        ...

    async def sweep(self, limit: int) -> int:
        """Removes at most `limit` expired records, and returns how many it removed."""
        ...

    async def chunks(self, place: Place, source_uri: str) -> Mapping[str, int]:
        """Returns the ids of a document's chunks with their indexes, except for those overwritten since."""
        ...

    async def replace_document(
        self,
        connection: Connection,
        place: Place,
        source_uri: str,
        kept: Mapping[str, int],
        entries: Sequence[Entry],
    ) -> int:
        """Replaces all of a document's records, except those kept, with entries; returns how many it replaced.

        `kept` maps ids from `chunks` to their new indexes; nothing else about them changes. Raises DocumentChanged if
        one no longer exists.
        """
        ...

    async def forget_documents(self, connection: Connection, place: Place, kept_uris: Collection[str]) -> int:
        """Forgets the records of all documents but those kept, and returns how many. Other records stay."""
        ...
