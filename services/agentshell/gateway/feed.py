"""One reader of the log for everyone who follows turns in a process; each wakes only for records of its session."""

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

# Paces progress messages to all readers together: a message to a client costs a third of what a step does.
_PACE_SECONDS = 0.005
_MAX_PACE_SECONDS = 0.25
# Types that are passed on at once: text, and what ends a turn or makes it wait.
_URGENT = frozenset(
    kind.DESCRIPTOR.full_name for kind in (OutputDelta, TurnCompleted, TurnFailed, TurnCancelled, TurnWaiting)
)
_SUCCEEDED = StepSucceeded.DESCRIPTOR.full_name
# Types that do not end an attempt.
_SILENT = frozenset(kind.DESCRIPTOR.full_name for kind in (TurnRequested, PlanCreated, StepScheduled, TurnCompleted))


def is_urgent(stored: StoredRecord) -> bool:
    """Returns whether a record is passed on at once."""
    return stored.record.headers.get("type") in _URGENT


class Follower:
    """Holds records for a reader until it takes them, in the log's order.

    It is `cut` when too many wait or the log fails: it then holds nothing, and the reader reads the log itself from
    where it is. So a slow reader costs no memory and holds up nobody.
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
        """Cuts it."""
        self.cut = True
        self.take()
        self._wake()

    def take(self) -> tuple[list[StoredRecord], list[StoredRecord]]:
        """Returns events and outputs. Text of attempts that the events end is in these outputs or earlier ones."""
        taken = list(self._events), list(self._outputs)
        self._events.clear()
        self._outputs.clear()
        self._bytes, self._urgent = 0, False
        return taken

    async def wait(self, seconds: float, *, patient: bool) -> None:
        """Waits until something has come or it is cut, at most `seconds`.

        If `patient`, only what is urgent ends the wait: text, and what ends a turn or makes it wait.
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
    """The feeds of the partitions that are being followed."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._feeds: dict[int, _Feed] = {}
        self._followers = 0

    @property
    def pace_seconds(self) -> float:
        """How long to hold back mere progress after a message to a reader: longer with more readers."""
        return min(_MAX_PACE_SECONDS, max(1, self._followers) * _PACE_SECONDS)

    def follow(self, partition: int, key: str, offsets: tuple[int, int], *, near_end: bool) -> Follower | None:
        """Returns a follower of a session's records from these offsets in both topics; it may get earlier ones too.

        Returns None if the feed has passed them, or if there is no feed yet and they are not `near_end`, since others
        would have to wait for it to catch up: read on in the log, and ask again.
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
        """Ends a follower, and its feed if that was the last one."""
        self._followers -= 1
        feed = follower.feed
        if not feed.unfollow(follower) and self._feeds.get(feed.partition) is feed:
            del self._feeds[feed.partition]


class _Feed:
    """Reads both topics of a partition, starting at `offsets`."""

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
        """Returns whether other followers remain."""
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
                    # An attempt's text comes before its end.
                    while outputs := await self._read(envelope.OUTPUTS, 0.0):
                        self._hand(envelope.OUTPUTS, outputs)
                self._hand(topic, records)
        except Exception:  # Followers then read the log themselves, and get its error.
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
    """Returns whether the record may end an attempt that has text. A wrong yes costs a read of the outputs."""
    kind = stored.record.headers.get("type")
    if kind != _SUCCEEDED:
        return kind not in _SILENT
    try:
        return TurnEvent.FromString(stored.record.payload).step_succeeded.result.delta_count > 0
    except DecodeError:
        return False
