"""One reading of the log for all who follow turns in a process: each is woken by what is of its session alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from agentshell.log.log import Log, StoredRecord
from agentshell.turn import envelope
from kfm.turn.v1.turn_event_pb2 import (
    OutputDelta,
    PlanCreated,
    StepScheduled,
    StepSucceeded,
    TurnCancelled,
    TurnCompleted,
    TurnEvent,
    TurnFailed,
    TurnRequested,
    TurnWaiting,
)

_READ_RECORDS = 256
_READ_SECONDS = 30.0
_MAX_WAITING_RECORDS = 1000
_MAX_WAITING_BYTES = 4 * 1024 * 1024

# All readers together are told of progress at most so often: a message to a client costs a third of what a step does.
_PACE_SECONDS = 0.005
_MAX_PACE_SECONDS = 0.25
# The types of what is passed on at once: text, and what ends a turn or has it wait.
_URGENT = frozenset(
    kind.DESCRIPTOR.full_name for kind in (OutputDelta, TurnCompleted, TurnFailed, TurnCancelled, TurnWaiting)
)
_SUCCEEDED = StepSucceeded.DESCRIPTOR.full_name
# The types of what ends no attempt.
_SILENT = frozenset(kind.DESCRIPTOR.full_name for kind in (TurnRequested, PlanCreated, StepScheduled, TurnCompleted))


def is_urgent(stored: StoredRecord) -> bool:
    """Returns whether a reader is to learn of it at once."""
    return stored.record.headers.get("type") in _URGENT


class Follower:
    """What has come for a reader and waits for it, in the log's order.

    It is `cut` when too much waits, or the log failed: then nothing waits any more, and the reader reads the log
    itself, from where it is. So a reader that does not read costs no memory, and nobody waits for it.
    """

    def __init__(self, feed: _Feed, key: str) -> None:
        self.feed = feed
        self.key = key
        self._events: deque[StoredRecord] = deque()
        self._outputs: deque[StoredRecord] = deque()
        self.cut = False
        self._bytes = 0
        self._urgent = False
        self._waiter: asyncio.Future[None] | None = None
        self._patient = False

    def put(self, topic: str, stored: StoredRecord) -> None:
        """Adds a record."""
        if self.cut:
            return
        (self._outputs if topic == envelope.OUTPUTS else self._events).append(stored)
        self._bytes += len(stored.record.payload)
        self._urgent = self._urgent or is_urgent(stored)
        if self._bytes > _MAX_WAITING_BYTES or len(self._events) + len(self._outputs) > _MAX_WAITING_RECORDS:
            self.cut_off()
        self._wake()

    def cut_off(self) -> None:
        """Ends it."""
        self.cut = True
        self.take()
        self._wake()

    def take(self) -> tuple[list[StoredRecord], list[StoredRecord]]:
        """Returns events and outputs; what the events end was said in these outputs, or in those before."""
        taken = list(self._events), list(self._outputs)
        self._events.clear()
        self._outputs.clear()
        self._bytes, self._urgent = 0, False
        return taken

    async def wait(self, seconds: float, *, patient: bool) -> None:
        """Returns when something has come, or when it is cut; after `seconds` at the latest.

        Who is `patient` waits on for what is urgent: text, and what ends a turn or has it wait.
        """
        self._patient = patient
        if self._is_answered:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._wake, True)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    @property
    def _is_answered(self) -> bool:
        return self.cut or self._urgent or (not self._patient and bool(self._events))

    def _wake(self, late: bool = False) -> None:
        if self._waiter is not None and not self._waiter.done() and (late or self._is_answered):
            self._waiter.set_result(None)


class Feeds:
    """The feeds of the partitions that somebody follows."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._feeds: dict[int, _Feed] = {}
        self._followers = 0

    @property
    def pace_seconds(self) -> float:
        """How long a reader that was told something is not told of mere progress: the longer the more readers."""
        return min(_MAX_PACE_SECONDS, max(1, self._followers) * _PACE_SECONDS)

    def follow(self, partition: int, key: str, offsets: tuple[int, int], *, near_end: bool) -> Follower | None:
        """Returns a follower of a session's records from these offsets of both topics on; it may get earlier ones too.

        None where the feed has passed them, and where there is none yet and they are not `near_end` of the log, so that
        others would wait for it to get there: read on, and ask again.
        """
        feed = self._feeds.get(partition)
        if feed is None or feed.is_over:
            if not near_end:
                return None
            feed = self._feeds[partition] = _Feed(self._log, partition, offsets)
        follower = feed.follow(key, offsets)
        self._followers += follower is not None
        return follower

    def unfollow(self, follower: Follower) -> None:
        """Ends a follower. A feed that nobody follows ends too."""
        self._followers -= 1
        feed = follower.feed
        if not feed.unfollow(follower) and self._feeds.get(feed.partition) is feed:
            del self._feeds[feed.partition]


class _Feed:
    """Reads both topics of a partition, from `offsets` on."""

    def __init__(self, log: Log, partition: int, offsets: tuple[int, int]) -> None:
        self._log = log
        self.partition = partition
        self._offsets: dict[str, int] = dict(zip((envelope.TURNS, envelope.OUTPUTS), offsets, strict=True))
        self._followers: dict[str, set[Follower]] = {}
        self._tasks = [asyncio.create_task(self._run(topic), name=f"feed of {topic}") for topic in self._offsets]
        self.is_over = False

    def follow(self, key: str, offsets: tuple[int, int]) -> Follower | None:
        if any(mine > asked for mine, asked in zip(self._offsets.values(), offsets, strict=True)):
            return None
        follower = Follower(self, key)
        self._followers.setdefault(key, set()).add(follower)
        return follower

    def unfollow(self, follower: Follower) -> bool:
        """Returns whether anybody else follows."""
        followers = self._followers.get(follower.key, set())
        followers.discard(follower)
        if not followers:
            self._followers.pop(follower.key, None)
        if not self._followers:
            self._end()
        return bool(self._followers)

    async def _run(self, topic: str) -> None:
        try:
            while True:
                records = await self._read(topic, _READ_SECONDS)
                if topic == envelope.TURNS and any(_ends_text(stored) for stored in records):
                    # What an attempt said comes before its end.
                    while outputs := await self._read(envelope.OUTPUTS, 0.0):
                        self._hand(envelope.OUTPUTS, outputs)
                self._hand(topic, records)
        except Exception:  # Who follows reads the log itself, and so learns what is wrong with it.
            self._end()

    async def _read(self, topic: str, wait: float) -> list[StoredRecord]:
        return await self._log.read(topic, self.partition, self._offsets[topic], _READ_RECORDS, wait)

    def _hand(self, topic: str, records: Sequence[StoredRecord]) -> None:
        for stored in records:
            if stored.offset >= self._offsets[topic]:  # Both tasks read the outputs.
                self._offsets[topic] = stored.offset + 1
                for follower in self._followers.get(stored.record.key, ()):
                    follower.put(topic, stored)

    def _end(self) -> None:
        self.is_over = True
        for task in self._tasks:
            task.cancel()
        for followers in self._followers.values():
            for follower in followers:
                follower.cut_off()


def _ends_text(stored: StoredRecord) -> bool:
    """Returns whether an attempt may have ended that said something. Where others share the log it costs to look."""
    kind = stored.record.headers.get("type")
    if kind != _SUCCEEDED:
        return kind not in _SILENT
    try:
        return TurnEvent.FromString(stored.record.payload).step_succeeded.result.delta_count > 0
    except DecodeError:
        return False
