"""The log port: partitioned, durable, replayable. `tests/contract/test_log_*.py` are its meaning; every driver passes.

What is acknowledged is on disk. Delivery is at least once, order is per partition, offsets only grow and may have gaps.
Consumers drop a repeated `record_id`; a driver that can drop it for them says so in `Ack.duplicate`.
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
MAX_HEADER_BYTES = 255  # Of a name, and of a value; neither is empty.
MAX_KEY_BYTES = 255
RECORD_ID_BYTES = 16
# Of one append, so that a queue of them is bounded.
MAX_APPEND_RECORDS = 10_000
MAX_APPEND_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Topic:
    """What a topic is. `retention` of None keeps records for ever.

    `durability` "relaxed" may lose the last moments with the machine, never with the process.
    """

    name: str
    partitions: int
    retention: timedelta | None = None
    durability: Literal["durable", "relaxed"] = "durable"


# Of these there is one a record, and a tuple is made in a third of the time of a frozen dataclass.
class Record(NamedTuple):
    """What is appended. `record_id` is 16 bytes, unique within the topic; `key` decides the partition."""

    key: str
    record_id: bytes
    payload: bytes
    headers: Mapping[str, str] = MappingProxyType({})


class Ack(NamedTuple):
    """Where an appended record is. `duplicate`: it was there before, and nothing was written."""

    partition: int
    offset: int
    duplicate: bool = False


class StoredRecord(NamedTuple):
    """A record with its place in the log and the time the log took it."""

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


@lru_cache(maxsize=4096)  # Of keys nearly all have been seen before.
def partition_of(key: str, partitions: int) -> int:
    """Returns the partition of a key: ours, the same for every driver and release. To change it would reorder keys."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % partitions


class Log(Protocol):
    """A durable log. Methods raise AgentShellError: LOG_UNAVAILABLE, TOPIC_NOT_FOUND, and as each says."""

    async def ensure_topic(self, topic: Topic) -> None:
        """Makes the topic, or checks that it is so. Raises TOPIC_MISMATCH where partitions or durability differ."""
        ...

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        """Appends records, in order within each partition, and returns once all are durable: all of them or none.

        As the holder of `lease`, where it is given: raises FENCED where that is over, as far as this process knows.

        Raises TOO_LARGE or INVALID_REQUEST for a record over the limits, before anything is written. After
        LOG_UNAVAILABLE the records may or may not be there: append again with the same ids.
        """
        ...

    async def append_all(
        self, batches: Sequence[tuple[str, Sequence[Record]]], lease: Lease | None = None
    ) -> list[list[Ack]]:
        """Appends to several topics in one durable step, and returns the acks in the order given.

        As `append`, all or none, where the driver has transactions over topics. One that has none (Iggy) appends
        them in the order given and stops at the first that fails: put first what must not be missing.
        """
        ...

    async def read(self, topic: str, partition: int, offset: int, limit: int, wait: float) -> list[StoredRecord]:
        """Returns up to `limit` records from `offset` on, waiting up to `wait` seconds for the first.

        Where `wait` is 0 it has all whose append was confirmed before, in any process and to any topic.
        Raises OFFSET_OUT_OF_RANGE where `offset` is older than what is retained.
        """
        ...

    async def join(self, topic: str, group: str, member: str) -> Lease:
        """Joins a group, or returns the member's lease as it now is. No two members hold one partition."""
        ...

    async def poll(self, lease: Lease, limit: int, wait: float) -> list[StoredRecord]:
        """Returns records that this lease has not been given yet, from the committed offsets on; renews the lease.

        Raises FENCED when the lease is over: join again, and go on from what is committed.
        """
        ...

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        """Commits, for each partition, the next offset to be given. Raises FENCED when the lease is over."""
        ...

    async def leave(self, lease: Lease) -> None:
        """Gives the partitions back. A lease that is over is no error."""
        ...

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        """Returns the committed next offset of each partition that has one."""
        ...

    async def end_offsets(self, topic: str) -> list[int]:
        """Returns, for each partition, the offset that the next record will have at the least."""
        ...

    async def health(self) -> None:
        """Returns when the log can be reached. Raises LOG_UNAVAILABLE."""
        ...

    async def close(self) -> None:
        """Ends what is under way and lets go of all connections."""
        ...
