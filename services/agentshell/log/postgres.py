"""The log in Postgres: the embedded default, and sufficient for a small cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType

from agentshell.db.binary import bigint, integer, number_of, time_at
from agentshell.db.database import Connection, Database
from agentshell.log import limits
from agentshell.log.log import Ack, Lease, Record, StoredRecord, Topic, partition_of
from agentshell.log.membership import Membership, fenced
from agentshell.log.peers import Peers
from agentshell.log.postgres_groups import PostgresGroups
from agentshell.log.postgres_topics import PostgresTopics
from agentshell.log.postgres_writer import Place, PostgresWriter, Row
from agentshell.log.reach import reach, unavailable
from agentshell.log.tail import Bell, Tail
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2

MAX_READ_BYTES = 4 * 1024 * 1024
RETENTION_SECONDS = 60.0
_READ = "SELECT * FROM log.read($1::integer, $2::bigint, $3::integer, $4::bigint)"
_READS_AT_ONCE = 2
_TRIM_RECORDS = 1000


class PostgresLog:
    """The `Log` on a database; create it with `open`, once per process.

    Offsets have no gaps. Duplicates are detected for as long as the first record is retained. A group whose committed
    offset is older than what is retained continues from the oldest record.
    """

    def __init__(self, database: Database, lease_seconds: float) -> None:
        self._database = database
        self._topics = PostgresTopics(database)
        self._peers = Peers(database, self, pulse_seconds=lease_seconds / 3)
        self._groups = PostgresGroups(database, self._peers, lease_seconds)
        self._reads = database.statements(_READ, _READS_AT_ONCE)
        self._durable = PostgresWriter(database, self._stored, relaxed=False)
        self._relaxed = PostgresWriter(database, self._stored, relaxed=True)
        self._retention: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, database: Database, *, lease_seconds: float = 5.0) -> PostgresLog:
        """Opens the log in a database and creates its schema. Raises LOG_UNAVAILABLE.

        A member loses its partitions after `lease_seconds` of silence, and at once if its process ends.
        """
        async with reach("make its schema"):
            await database.migrate("log", "agentshell.log.migrations")
        log = cls(database, lease_seconds)
        try:
            await log._peers.open()
        except BaseException:
            await log.close()
            raise
        log._retention = asyncio.create_task(log._retain(), name="log retention")
        return log

    async def close(self) -> None:
        """Writes what is queued and closes all connections. Callers that wait for records get LOG_UNAVAILABLE."""
        self._closed = True
        if self._retention is not None:
            self._retention.cancel()
            await asyncio.gather(self._retention, return_exceptions=True)
        await asyncio.gather(self._durable.close(), self._relaxed.close())
        await self._peers.close()
        self.lost()

    async def health(self) -> None:
        """Returns if Postgres answers. Raises LOG_UNAVAILABLE."""
        async with reach("see that it is healthy"), self._database.connection() as connection:
            await connection.execute("SELECT 1")

    async def ensure_topic(self, topic: Topic) -> None:
        """Creates the topic, or sets its retention. Raises TOPIC_MISMATCH if partitions or durability differ."""
        await self._topics.ensure(topic)

    # Appending

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        """Appends records in one durable step."""
        return (await self.append_all([(topic, records)], lease))[0]

    async def append_all(
        self, batches: Sequence[tuple[str, Sequence[Record]]], lease: Lease | None = None
    ) -> list[list[Ack]]:
        """Appends to several topics in one durable step, which does not wait for the disk if all topics are relaxed."""
        limits.check(batches)
        if lease is not None:
            self._groups.check(lease)
        rows: list[Row] = []
        relaxed = True
        for name, records in batches:
            topic = await self._topics.find(name)
            relaxed = relaxed and topic.relaxed
            rows += [Row(topic.tails[partition_of(record.key, len(topic.tails))], record) for record in records]
        if not rows:
            return [[] for _ in batches]
        places = await (self._relaxed if relaxed else self._durable).append(rows)
        acks = (Ack(row.tail.partition, place.offset, place.duplicate) for row, place in zip(rows, places, strict=True))
        return [[next(acks) for _ in records] for _, records in batches]

    def _stored(self, rows: Sequence[Row], places: Sequence[Place]) -> None:
        """Adds what was just appended to memory, which wakes its readers, and tells the other processes."""
        grown: dict[Tail, list[StoredRecord]] = {}
        for (tail, record), (offset, append_time, duplicate) in zip(rows, places, strict=True):
            if not duplicate:
                grown.setdefault(tail, []).append(StoredRecord(tail.partition, offset, append_time, record))
        for tail, records in grown.items():
            tail.add(records[0].offset, records)
        self._peers.tell_ends({tail.partition_id: records[-1].offset + 1 for tail, records in grown.items()})

    # Reading

    async def read(self, topic: str, partition: int, offset: int, limit: int, wait: float) -> list[StoredRecord]:
        """Returns up to `limit` records starting at `offset`, stopping once they reach 4 MiB."""
        _check_limit(limit)
        tail = (await self._topics.find(topic)).tail(partition)
        deadline = asyncio.get_running_loop().time() + wait
        # Messages of several processes come in any order, so a caller that does not wait must not rely on them.
        asks = wait <= 0 and not self._peers.alone
        while True:
            records = await self._take(tail, offset, limit, asks=asks)
            if records or (wait <= 0 and not self._closed) or not await self._rung([tail.bell], deadline):
                return records

    async def end_offsets(self, topic: str) -> list[int]:
        """Returns each partition's next offset, from the database."""
        tails = (await self._topics.find(topic)).tails
        await self._observe(tails)
        return [tail.next_offset or 0 for tail in tails]

    async def _take(self, tail: Tail, offset: int, limit: int, *, asks: bool = False) -> list[StoredRecord]:
        """Returns the records there are, starting at `offset`, if possible from memory. Raises OFFSET_OUT_OF_RANGE.

        If memory has none, it queries the database if `asks` is set, and otherwise trusts what was heard.
        """
        if tail.next_offset is None or not self._peers.hears:
            await self._observe([tail])
        if offset < tail.base_offset:
            raise _out_of_range(tail, offset)
        is_end = tail.next_offset is not None and offset >= tail.next_offset
        if is_end and not asks:
            return []
        if records := tail.slice(offset, limit):
            return records
        async with tail.reading:
            if records := tail.slice(offset, limit):
                return records
            records = await self._fetch(tail, offset, limit)
            if is_end and not records:
                return []
            if not records or records[0].offset > offset:  # Deleted since.
                await self._observe([tail])
                if offset < tail.base_offset:
                    raise _out_of_range(tail, offset)
            tail.add(offset, records)
            return records

    async def _fetch(self, tail: Tail, offset: int, limit: int) -> list[StoredRecord]:
        parameters = (integer(tail.partition_id), bigint(offset), integer(limit), bigint(MAX_READ_BYTES))
        async with reach("read records"):
            found = await self._reads.run(parameters)
        rows = ([found.get_value(row, column) or b"" for column in range(6)] for row in range(found.ntuples))
        return [
            StoredRecord(
                tail.partition,
                number_of(at),
                time_at(number_of(append_time)),
                Record(key.decode(), record_id, payload, _headers(headers)),
            )
            for at, append_time, key, record_id, headers, payload in rows
        ]

    async def _observe(self, tails: Sequence[Tail]) -> None:
        async with reach("see where partitions end"), self._database.connection() as connection:
            await _observe(connection, tails)

    async def _rung(self, bells: Iterable[Bell], deadline: float) -> bool:
        """Waits until one of the bells rings; False after the deadline. Raises LOG_UNAVAILABLE on close."""
        rung = not self._closed and await Bell.first(bells, deadline - asyncio.get_running_loop().time())
        if self._closed:
            raise unavailable("be read: it is closed in this process")
        return rung

    # Groups

    async def join(self, topic: str, group: str, member: str) -> Lease:
        """Joins a group, or returns the member's current lease."""
        return await self._groups.join(await self._topics.find(topic), group, member)

    async def poll(self, lease: Lease, limit: int, wait: float) -> list[StoredRecord]:
        """Returns records that this lease has not been given yet. Polls of one lease take turns."""
        _check_limit(limit)
        topic = await self._topics.find(lease.topic)
        membership = self._groups.membership(lease)
        bells = [membership.bell, *(topic.tails[partition].bell for partition in lease.partitions)]
        deadline = asyncio.get_running_loop().time() + wait
        async with membership.polling:
            while True:
                records = await self._gather(membership, topic.tails, limit)
                if membership.over:
                    raise fenced(lease)
                if records or not await self._rung(bells, deadline):
                    # Only now, with nothing left to await: a cancelled poll has given nothing.
                    membership.give(records)
                    return records

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        """Commits the next offset of partitions of the lease. The last commits may be lost if the machine crashes."""
        await self._groups.commit(lease, offsets)

    async def leave(self, lease: Lease) -> None:
        """Gives the partitions back."""
        await self._groups.leave(await self._topics.find(lease.topic), lease)

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        """Returns the committed next offset of each partition that has one."""
        return await self._groups.committed(await self._topics.find(topic), group)

    async def _gather(self, membership: Membership, tails: Sequence[Tail], limit: int) -> list[StoredRecord]:
        gathered: list[StoredRecord] = []
        hears = self._peers.hears
        for partition in membership.rotated():
            if len(gathered) == limit or membership.over:
                break
            tail, position = tails[partition], membership.positions[partition]
            if hears and position == tail.next_offset:  # The usual case: nothing new.
                continue
            try:
                gathered += await self._take(tail, max(position, tail.base_offset), limit - len(gathered))
            except AgentShellError as error:
                if error.reason != error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE:
                    raise
                gathered += await self._take(tail, tail.base_offset, limit - len(gathered))
        return gathered

    # What `Peers` reports

    def heard_ends(self, ends: Mapping[int, int]) -> None:
        """Partitions have grown in another process."""
        for partition_id, next_offset in ends.items():
            tail = self._topics.tail(partition_id)
            if tail is not None and tail.next_offset is not None:
                tail.observe(tail.base_offset, next_offset)

    def heard_generation(self, group_id: int, generation: int) -> None:
        """The members of a group have changed."""
        self._groups.heard_generation(group_id, generation)

    async def look(self, connection: Connection, *, thorough: bool) -> None:
        """Checks whether members are alive, and if `thorough`, whether awaited partitions have grown."""
        await self._groups.look(connection)
        if thorough and (awaited := [tail for tail in self._topics.tails if tail.bell.awaited]):
            await _observe(connection, awaited)

    def lost(self) -> None:
        """Other processes can no longer be heard: forgets what may be stale, so that waiting callers look again."""
        self._groups.lost()
        for tail in self._topics.tails:
            tail.forget()

    # Retention

    async def apply_retention(self, now: datetime) -> int:
        """Deletes the records that exceed their topic's retention at `now`. Returns how many."""
        async with reach("find what to delete"), self._database.connection() as connection:
            cursor = await connection.execute(
                "SELECT partition_id, %s - retention FROM log.topics JOIN log.partitions USING (topic_id)"
                " WHERE retention IS NOT NULL AND next_offset > base_offset",
                (now,),
            )
            due = await cursor.fetchall()
        return sum([await self._trim(partition_id, cutoff) for partition_id, cutoff in due])

    async def _trim(self, partition_id: int, cutoff: datetime) -> int:
        """Deletes a partition's records older than `cutoff`, in small portions because appends wait meanwhile."""
        deleted = 0
        while deleted % _TRIM_RECORDS == 0:
            async with reach("delete old records"), self._database.connection() as connection:
                cursor = await connection.execute(
                    "SELECT log.trim(%s::integer, %s, %s::integer)", (partition_id, cutoff, _TRIM_RECORDS)
                )
                (count,) = await cursor.fetchone() or (0,)
            if not count:
                break
            deleted += count
        if deleted and (tail := self._topics.tail(partition_id)) is not None:
            await self._observe([tail])
        return deleted

    async def _retain(self) -> None:
        while True:
            await asyncio.sleep(RETENTION_SECONDS)
            with contextlib.suppress(AgentShellError):  # The next round retries.
                await self.apply_retention(datetime.now(UTC))


async def _observe(connection: Connection, tails: Sequence[Tail]) -> None:
    cursor = await connection.execute(
        "SELECT partition_id, base_offset, next_offset FROM log.partitions WHERE partition_id = ANY (%s)",
        ([tail.partition_id for tail in tails],),
    )
    ends = {partition_id: (base, following) for partition_id, base, following in await cursor.fetchall()}
    for tail in tails:
        tail.observe(*ends[tail.partition_id])


@lru_cache(maxsize=1024)  # There are few combinations, and most have been seen before.
def _headers(document: bytes) -> Mapping[str, str]:
    return MappingProxyType(json.loads(document[1:]) if document else {})


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise invalid("limit", f"is {limit}; give at least 1")


def _out_of_range(tail: Tail, offset: int) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE,
        f"offset {offset} of {tail.topic}/{tail.partition} is no longer retained: start at {tail.base_offset}",
        metadata={"base_offset": str(tail.base_offset)},
    )
