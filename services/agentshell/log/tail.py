"""The end of a partition, in memory, and the bell that rings when it moves."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from agentshell.log.log import StoredRecord

MAX_TAIL_RECORDS = 4096
MAX_TAIL_BYTES = 4 * 1024 * 1024


class Bell:
    """Wakes everyone who waits for it, each time it rings."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[bool]] = set()

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self._waiting)

    def ring(self) -> None:
        """Wakes those who wait now."""
        for waiter in self._waiting:
            _answer(waiter, True)

    @staticmethod
    async def first(bells: Iterable[Bell], wait_seconds: float) -> bool:
        """Waits until one of the bells rings. Returns False if none has within `wait_seconds`."""
        if wait_seconds <= 0:
            return False
        bells, loop = tuple(bells), asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(wait_seconds, _answer, waiter, False)
        for bell in bells:
            bell._waiting.add(waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            for bell in bells:
                bell._waiting.discard(waiter)


class Tail:
    """What this process knows about one partition: where it begins and ends, and its newest records.

    The records are one contiguous run. Appends of this process and reads at the end extend it; if another process has
    appended in between, the run restarts after the hole.
    """

    def __init__(self, topic: str, partition: int, partition_id: int) -> None:
        self.topic = topic
        self.partition = partition
        self.partition_id = partition_id
        self.bell = Bell()
        self.reading = asyncio.Lock()  # One database read at a time: whoever waited finds the records in memory.
        self.forget()

    def forget(self) -> None:
        """Forgets everything, and wakes those who wait, so that they look again."""
        self.base_offset = 0
        self.next_offset: int | None = None
        self._records: list[StoredRecord] = []
        self._run_start = self._run_stop = 0
        self._bytes = 0
        self.bell.ring()

    def observe(self, base_offset: int, next_offset: int) -> None:
        """Records where the partition begins and ends, and wakes those who wait if it has grown."""
        self.base_offset = max(self.base_offset, base_offset)
        if self.next_offset is None or next_offset > self.next_offset:
            self.next_offset = next_offset
            self.bell.ring()

    def add(self, start: int, records: Sequence[StoredRecord]) -> None:
        """Adds all the records that exist from offset `start` to the last of them, and wakes those who wait."""
        if not records:
            return
        stop = records[-1].offset + 1
        if stop > self._run_stop:
            if start > self._run_stop:
                self._records, self._run_start, self._bytes = [], start, 0
            fresh = records[bisect_left(records, self._run_stop, key=_offset) :]
            self._records.extend(fresh)
            self._run_stop = stop
            self._bytes += sum(len(stored.record.payload) for stored in fresh)
            self._shed()
        self.observe(self.base_offset, stop)

    def slice(self, offset: int, limit: int) -> list[StoredRecord]:
        """Returns up to `limit` records starting at `offset`; empty if memory does not have them."""
        if not self._run_start <= offset < self._run_stop:
            return []
        first = bisect_left(self._records, offset, key=_offset)
        return self._records[first : first + limit]

    def _shed(self) -> None:
        """Drops the oldest records beyond the limits."""
        drop = max(0, len(self._records) - MAX_TAIL_RECORDS)
        size = self._bytes - sum(len(stored.record.payload) for stored in self._records[:drop])
        while size > MAX_TAIL_BYTES:
            size -= len(self._records[drop].record.payload)
            drop += 1
        if drop:
            self._run_start = self._records[drop - 1].offset + 1
            del self._records[:drop]
            self._bytes = size


def _offset(stored: StoredRecord) -> int:
    return stored.offset


def _answer(waiter: asyncio.Future[bool], rung: bool) -> None:
    if not waiter.done():
        waiter.set_result(rung)
