"""The log port: partitioned, durable, replayable. `tests/contract/test_log_*.py` define it; every driver passes them.

What is acknowledged is on disk. Delivery is at least once, order is per partition, offsets only grow and may have gaps.
Consumers drop a repeated `record_id`; a driver that detects repeats itself sets `Ack.duplicate`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

MAX_PAYLOAD_BYTES = 1024 * 1024
MAX_HEADERS = 32
MAX_HEADER_BYTES = 255  # Of a name or a value; neither may be empty.
MAX_KEY_BYTES = 255
RECORD_ID_BYTES = 16
# Of one append, so that a queue of appends is bounded.
MAX_APPEND_RECORDS = 10_000
MAX_APPEND_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Topic:
    """The properties of a topic. A `retention` of None keeps records for ever.

    With `durability` "relaxed", the last moments may be lost if the machine crashes, but not if the process does.
    """

    name: str
    partitions: int
    retention: timedelta | None = None
    durability: Literal["durable", "relaxed"] = "durable"


# There is one per record, and creating a tuple takes a third of the time of a frozen dataclass.
class Record(NamedTuple):
    """A record to append. `record_id` is 16 bytes, unique within the topic; `key` determines the partition."""

    key: str
    record_id: bytes
    payload: bytes
    headers: Mapping[str, str] = MappingProxyType({})


class Ack(NamedTuple):
    """The position of an appended record. `duplicate`: it was there before, and nothing was written."""

    partition: int
    offset: int
    duplicate: bool = False


class StoredRecord(NamedTuple):
    """A record with its position in the log and the time of its append."""

    partition: int
    offset: int
    append_time: datetime
    record: Record


@dataclass(frozen=True, slots=True)
class Lease:
    """A member's claim on partitions of a topic. It ends when the member leaves, falls silent, or partitions move."""

    topic: str
    group: str
    member: str
    generation: int
    partitions: tuple[int, ...]


@lru_cache(maxsize=4096)  # Nearly all keys have been seen before.
def partition_of(key: str, partitions: int) -> int:
    """Returns the partition of a key, the same in every driver and release. Changing it would reorder keys."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % partitions


class Log(Protocol):
    """A durable log. Methods raise AgentShellError: LOG_UNAVAILABLE, TOPIC_NOT_FOUND, and as documented for each."""

    async def ensure_topic(self, topic: Topic) -> None:
        """Creates the topic, or checks the existing one. Raises TOPIC_MISMATCH if partitions or durability differ."""
        ...

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        """Appends records, all or none, in order within each partition, and returns once all are durable.

        If `lease` is given, appends as its holder: raises FENCED if it is over, as far as this process knows.

        Raises TOO_LARGE or INVALID_REQUEST for a record over the limits, before anything is written. After
        LOG_UNAVAILABLE the records may or may not be there: append again with the same ids.
        """
        ...

    async def append_all(
        self, batches: Sequence[tuple[str, Sequence[Record]]], lease: Lease | None = None
    ) -> list[list[Ack]]:
        """Appends to several topics in one durable step, and returns the acks in the order given.

        Like `append`, all or none, if the driver has transactions across topics. A driver that has none (Iggy) appends
        them in the order given and stops at the first failure: put first what must not be missing.
        """
        ...

    async def read(self, topic: str, partition: int, offset: int, limit: int, wait: float) -> list[StoredRecord]:
        """Returns up to `limit` records starting at `offset`, waiting up to `wait` seconds for the first.

        If `wait` is 0, it sees every append that was confirmed before, in any process and to any topic.
        Raises OFFSET_OUT_OF_RANGE if `offset` is older than what is retained.
        """
        ...

    async def join(self, topic: str, group: str, member: str) -> Lease:
        """Joins a group, or returns the member's current lease. No two members hold the same partition."""
        ...

    async def poll(self, lease: Lease, limit: int, wait: float) -> list[StoredRecord]:
        """Returns records that this lease has not been given yet, from the committed offsets on; renews the lease.

        Raises FENCED if the lease is over: join again, and continue from what is committed.
        """
        ...

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        """Commits, for each partition, the next offset to be given. Raises FENCED if the lease is over."""
        ...

    async def leave(self, lease: Lease) -> None:
        """Gives the partitions back. A lease that is over is not an error."""
        ...

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        """Returns the committed next offset of each partition that has one."""
        ...

    async def end_offsets(self, topic: str) -> list[int]:
        """Returns, for each partition, the lowest offset that the next record can have."""
        ...

    async def health(self) -> None:
        """Returns if the log is reachable. Raises LOG_UNAVAILABLE."""
        ...

    async def close(self) -> None:
        """Finishes what is under way and closes all connections."""
        ...
