"""The appends of a process to one partition in Iggy: queued appends go together, one batch at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from agentshell.log.iggy_wire import Wire
from agentshell.log.log import Record
from agentshell.log.membership import Membership, fenced
from agentshell.log.tail import Bell

MAX_BATCH_RECORDS = 1000
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_WAITING_APPENDS = 1024


@dataclass(slots=True, eq=False)
class _Append:
    records: Sequence[Record]
    size_bytes: int
    holder: Membership | None
    done: asyncio.Future[int]


class Lane:
    """Appends in call order. There is no timer: what arrives while a batch is under way forms the next one.

    `bell` rings when the partition has grown, and `end` is its next offset, as far as this process knows. `seen` is an
    offset that was known to be retained.
    """

    def __init__(self, wire: Wire, topic: str, partition: int) -> None:
        self.partition = partition
        self.bell = Bell()
        self.end = 0
        self.seen = -1
        self._wire = wire
        self._topic = topic
        self._room = asyncio.Semaphore(MAX_WAITING_APPENDS)
        self._waiting: deque[_Append] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def append(self, records: Sequence[Record], holder: Membership | None) -> int:
        """Returns the offset of the first record once all are stored; the others follow it.

        Raises LOG_UNAVAILABLE, and FENCED if `holder`'s lease is over before they are sent.
        """
        async with self._room:
            size_bytes = sum(len(record.payload) for record in records)
            append = _Append(records, size_bytes, holder, asyncio.get_running_loop().create_future())
            self._waiting.append(append)
            if self._sending is None or self._sending.done():
                self._sending = asyncio.create_task(self._send(), name="log lane")
            return await append.done

    def grow(self, end: int) -> None:
        """Records where the partition ends, and wakes those who wait for it to grow."""
        if end > self.end:
            self.end = end
            self.bell.ring()

    async def close(self) -> None:
        """Writes what is queued, then ends."""
        if self._sending is not None:
            await self._sending

    async def _send(self) -> None:
        while batch := self._take():
            try:
                offset = await self._wire.send(self._topic, self.partition, [r for a in batch for r in a.records])
            except Exception as error:  # Whatever it is, the callers must get it.
                # So must those queued behind: they would otherwise wait out one timeout after another, or overtake it.
                for append in (*batch, *self._waiting):
                    if not append.done.done():
                        append.done.set_exception(error)
                self._waiting.clear()
                continue
            for append in batch:
                if not append.done.done():
                    append.done.set_result(offset)
                offset += len(append.records)
            self.seen = max(self.seen, offset)
            self.grow(offset)

    def _take(self) -> list[_Append]:
        """Takes the next batch in order, skipping abandoned appends. An append larger than a batch goes alone."""
        batch: list[_Append] = []
        records = size_bytes = 0
        while self._waiting:
            append = self._waiting[0]
            if append.holder and append.holder.expired and not append.done.done():
                append.done.set_exception(fenced(append.holder.lease))
            if not append.done.done():
                records += len(append.records)
                size_bytes += append.size_bytes
                if batch and (records > MAX_BATCH_RECORDS or size_bytes > MAX_BATCH_BYTES):
                    break
                batch.append(append)
            self._waiting.popleft()
        return batch
