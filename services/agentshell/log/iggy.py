"""The log in Apache Iggy 0.9: for production, on any number of machines.

It does not drop duplicates (`Ack.duplicate` is always False) and has no transactions: `append_all` appends in the
order given, and after LOG_UNAVAILABLE an append to several partitions may be there in part.

Its server does not fence appends: commits are fenced exactly, appends under a lease only as far as this process knows.
It refuses an append, even a queued one, once the lease is over by what it has heard or by its own clock. Appends
sent before that may still land (for up to `CALL_SECONDS`) after the next owner's first records. This is why decisions
have deterministic ids, and why folds skip a repeated or late one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence

from agentshell.log import limits
from agentshell.log.iggy_groups import IggyGroups
from agentshell.log.iggy_lane import Lane
from agentshell.log.iggy_watch import Watch
from agentshell.log.iggy_wire import IggyTopic, Wire, stream_of, unavailable
from agentshell.log.log import Ack, Lease, Record, StoredRecord, Topic, partition_of
from agentshell.log.membership import Membership
from agentshell.log.tail import Bell
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2

MAX_READ_RECORDS = 1000
APPEND_CONNECTIONS = 4  # A connection has one request under way at a time, and each waits for the disk.
_REST_SECONDS = 5.0  # How long a reader at the end waits if nothing wakes it; a safeguard.
_RETRY_SECONDS = 0.25


class IggyLog:
    """The `Log` on an Iggy server; create it with `open`, once per process.

    A topic of relaxed durability may lose its last records if the server's process crashes, not only its machine.
    """

    def __init__(self, url: str, stream: str, lease_seconds: float) -> None:
        self._appending = [Wire(url, stream) for _ in range(APPEND_CONNECTIONS)]
        self._reading = Wire(url, stream)
        self._grouping = Wire(url, f"{stream}.groups", lost=self._lost)
        self._groups = IggyGroups(self._grouping, lease_seconds)
        self._lanes: dict[str, Sequence[Lane]] = {}
        self._watch = Watch(self._reading, self._lanes)
        self._closing = Bell()
        self._closed = False

    @classmethod
    async def open(cls, url: str, *, stream: str = "", lease_seconds: float = 5.0) -> IggyLog:
        """Opens the log in a stream of the server at `iggy://USER:PASSWORD@HOST:PORT/STREAM`, creating the stream.

        A member loses its partitions after `lease_seconds` of silence, and sooner if its process ends.
        Raises LOG_UNAVAILABLE, and CONFIG_INVALID for a server of another version or without persisted durability.
        """
        log = cls(url, stream or stream_of(url), lease_seconds)
        try:
            for wire in (log._reading, log._grouping):
                await wire.make_stream()
        except BaseException:
            await log.close()
            raise
        return log

    async def close(self) -> None:
        """Writes what is queued and closes all connections. Callers that wait for records get LOG_UNAVAILABLE."""
        self._closed = True
        self._closing.ring()
        await asyncio.gather(*(lane.close() for lanes in self._lanes.values() for lane in lanes))
        await asyncio.gather(self._watch.close(), self._groups.close())
        await asyncio.gather(*(wire.close() for wire in (*self._appending, self._reading, self._grouping)))

    async def health(self) -> None:
        """Returns if the server answers. Raises LOG_UNAVAILABLE."""
        await self._reading.ping()

    async def ensure_topic(self, topic: Topic) -> None:
        """Creates the topic, or sets its retention. Raises TOPIC_MISMATCH if partitions or durability differ."""
        if not topic.name or topic.partitions < 1:
            raise invalid("topic", f"{topic.name!r} with {topic.partitions} partitions; give a name and at least one")
        known = await self._reading.topic(topic.name)
        if known is None:
            await self._reading.make_topic(topic)
            known = await self._topic(topic.name)
        if (len(known.ends), known.relaxed) != (topic.partitions, topic.durability == "relaxed"):
            raise _mismatch(topic, known)
        if known.retention != topic.retention:
            await self._reading.retain(topic.name, topic.retention)

    # Appending

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        """Appends records: those of one partition in one durable step, different partitions in parallel.

        If `lease` is given, appends as its holder. Raises FENCED if it is over.
        """
        limits.check([(topic, records)])
        holder = self._groups.membership(lease) if lease else None
        return await self._append(await self._open_lanes(topic), records, holder)

    async def append_all(
        self, batches: Sequence[tuple[str, Sequence[Record]]], lease: Lease | None = None
    ) -> list[list[Ack]]:
        """Appends to one topic after another, in the order given, and stops at the first failure.

        If `lease` is given, appends as its holder. Raises FENCED if it is over.
        """
        limits.check(batches)
        holder = self._groups.membership(lease) if lease else None
        opened = [(await self._open_lanes(topic), records) for topic, records in batches]
        return [await self._append(lanes, records, holder) for lanes, records in opened]

    async def _append(self, lanes: Sequence[Lane], records: Sequence[Record], holder: Membership | None) -> list[Ack]:
        if self._closed:
            raise unavailable("append: it is closed in this process")
        shares: dict[int, list[int]] = {}
        for index, record in enumerate(records):
            shares.setdefault(partition_of(record.key, len(lanes)), []).append(index)
        sent = await asyncio.gather(
            *(
                lanes[partition].append([records[index] for index in share], holder)
                for partition, share in shares.items()
            ),
            return_exceptions=True,  # The outcome is known only once all have ended.
        )
        acks: dict[int, Ack] = {}
        for (partition, share), first in zip(shares.items(), sent, strict=True):
            if isinstance(first, BaseException):
                raise first
            acks.update((index, Ack(partition, first + place)) for place, index in enumerate(share))
        return [acks[index] for index in range(len(records))]

    # Reading

    async def read(self, topic: str, partition: int, offset: int, limit: int, wait: float) -> list[StoredRecord]:
        """Returns up to `limit` records, at most a thousand, starting at `offset`."""
        _check_limit(limit)
        lane = _lane(topic, await self._open_lanes(topic), partition)
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            end = lane.end
            records = await self._reading.poll(topic, partition, offset, min(limit, MAX_READ_RECORDS))
            if offset != lane.seen and (not records or records[0].offset > offset):
                await self._check_retained(topic, lane, offset)
            if records:
                lane.seen = records[-1].offset + 1
                return records
            if not await self._rest([lane.bell], _REST_SECONDS if lane.end == end else 0, deadline):
                return []

    async def end_offsets(self, topic: str) -> list[int]:
        """Returns each partition's next offset."""
        return list((await self._topic(topic)).ends)

    async def _check_retained(self, topic: str, lane: Lane, offset: int) -> None:
        """Raises OFFSET_OUT_OF_RANGE if the offset is older than what is retained."""
        oldest = await self._reading.oldest(topic, lane.partition)
        if oldest is None:
            oldest = (await self._topic(topic)).ends[lane.partition]
        if offset < oldest:
            raise AgentShellError(
                error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE,
                f"offset {offset} of {topic}/{lane.partition} is no longer retained: start at {oldest}",
                metadata={"base_offset": str(oldest)},
            )
        lane.seen = offset

    async def _rest(self, bells: Iterable[Bell], seconds: float, deadline: float) -> bool:
        """Waits up to `seconds`, or until a bell rings. False after the deadline. Raises LOG_UNAVAILABLE on close."""
        remaining = deadline - asyncio.get_running_loop().time()
        if not self._closed:
            if remaining > 0:
                self._watch.start()
            await Bell.first([self._closing, *bells], min(seconds, remaining))
        if self._closed:
            raise unavailable("be read: it is closed in this process")
        return remaining > 0

    # Groups

    async def join(self, topic: str, group: str, member: str) -> Lease:
        """Joins a group, or returns the member's current lease."""
        return await self._groups.join(topic, len(await self._open_lanes(topic)), group, member)

    async def poll(self, lease: Lease, limit: int, wait: float) -> list[StoredRecord]:
        """Returns records that this lease has not been given yet. Polls of one lease take turns."""
        _check_limit(limit)
        lanes = await self._open_lanes(lease.topic)
        membership = self._groups.membership(lease)
        held = [lanes[partition] for partition in lease.partitions]
        bells = [membership.bell, *(lane.bell for lane in held)]
        deadline = asyncio.get_running_loop().time() + wait
        async with membership.polling:
            while True:
                ends = [lane.end for lane in held]
                try:
                    records = await self._gather(membership, limit)
                except AgentShellError:
                    self._groups.membership(lease)
                    # The lease does not depend on the connection for reading: a new one may work.
                    if not await self._rest([membership.bell], _RETRY_SECONDS, deadline):
                        raise
                    continue
                self._groups.membership(lease)
                rest = _REST_SECONDS if ends == [lane.end for lane in held] else 0
                if records or not await self._rest(bells, rest, deadline):
                    # Only now, with nothing left to await: a cancelled poll has given nothing.
                    membership.give(records)
                    return records

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        """Commits the next offset of partitions of the lease, durably."""
        await self._groups.commit(lease, offsets)

    async def leave(self, lease: Lease) -> None:
        """Gives the partitions back."""
        await self._groups.leave(lease)

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        """Returns the committed next offset of each partition that has one."""
        return await self._groups.committed(topic, len(await self._open_lanes(topic)), group)

    async def _gather(self, membership: Membership, limit: int) -> list[StoredRecord]:
        gathered: list[StoredRecord] = []
        for partition in membership.rotated():
            if len(gathered) == limit or membership.over:
                break
            most = min(limit - len(gathered), MAX_READ_RECORDS)
            # Starts at the oldest retained record if the position is older.
            gathered += await self._reading.poll(
                membership.lease.topic, partition, membership.positions[partition], most
            )
        return gathered

    def _lost(self) -> None:
        self._groups.lost()

    # Topics

    async def _open_lanes(self, topic: str) -> Sequence[Lane]:
        """Returns the lanes of a topic; topics are permanent and keep their partitions. Raises TOPIC_NOT_FOUND."""
        if lanes := self._lanes.get(topic):
            return lanes
        partitions = len((await self._topic(topic)).ends)
        wires = itertools.cycle(self._appending)
        lanes = [Lane(next(wires), topic, partition) for partition in range(partitions)]
        return self._lanes.setdefault(topic, lanes)

    async def _topic(self, name: str) -> IggyTopic:
        topic = await self._reading.topic(name)
        if topic is None:
            raise AgentShellError(
                error_pb2.ERROR_REASON_TOPIC_NOT_FOUND,
                f"the log has no topic {name!r}: make it with ensure_topic, or correct the name",
                metadata={"topic": name},
            )
        return topic


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise invalid("limit", f"is {limit}; give at least 1")


def _lane(topic: str, lanes: Sequence[Lane], partition: int) -> Lane:
    if not 0 <= partition < len(lanes):
        raise invalid("partition", f"topic {topic!r} has no partition {partition}, only {len(lanes)}")
    return lanes[partition]


def _mismatch(topic: Topic, known: IggyTopic) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_TOPIC_MISMATCH,
        f"topic {topic.name!r} has {len(known.ends)} partitions and is {'relaxed' if known.relaxed else 'durable'}, "
        f"not {topic.partitions} and {topic.durability}: both are fixed when a topic is made; ask for the values it "
        "has, or use another topic",
        metadata={"topic": topic.name},
    )
