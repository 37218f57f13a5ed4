"""Reads one turn from the log: its events and its text, merged, from any place on, until it is over."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from google.protobuf.message import DecodeError

from agentshell.gateway.cursor import Cursor
from agentshell.gateway.turn_index import IndexedTurn
from agentshell.log.log import Log, StoredRecord
from agentshell.turn import envelope
from agentshell.turn.merge import Merge
from kfm.turn.v1.turn_event_pb2 import OutputDelta, TurnEvent, TurnUpdate

_READ_RECORDS = 256
# A response: with one more record of 1 MiB at the most it stays below the 4 MiB that gRPC takes by default.
_BATCH_UPDATES = 256
_BATCH_BYTES = 1024 * 1024
_WAIT_SECONDS = 30.0


class TurnReader:
    """Merges `agent.turns` and `agent.outputs` for one reader.

    It always folds the turn from its beginning, and shows what the reader's cursor has not passed: so what is shown
    does not depend on where the reader was cut off.
    """

    def __init__(self, log: Log, row: IndexedTurn, partition: int, cursor: Cursor | None) -> None:
        self._log = log
        self._partition = partition
        self._key = envelope.session_key(row.tenant_id, row.turn.session_id)
        self._turn_id = row.turn.turn_id
        self._merge = Merge(self._turn_id)
        self._turns_offset = row.turns_offset
        self._outputs_offset = row.outputs_offset
        self._seen = cursor or Cursor(self._turn_id, 0, 0)
        self._outputs: deque[StoredRecord] = deque()
        self._updates: list[TurnUpdate] = []
        self._bytes = 0

    @property
    def cursor(self) -> Cursor:
        """Where the next reader resumes, after all that was returned."""
        outputs_offset = self._outputs[0].offset if self._outputs else self._outputs_offset
        return Cursor(
            self._turn_id,
            max(self._turns_offset, self._seen.turns_offset),
            max(outputs_offset, self._seen.outputs_offset),
        )

    async def batches(self) -> AsyncGenerator[list[TurnUpdate]]:
        """Yields what happens, in order, whatever has come since the last time together; ends with the turn."""
        while True:
            for stored in await self._read(envelope.TURNS, self._turns_offset):
                event = self._event(stored)
                if event is not None and not event.HasField("step_scheduled"):
                    async for full in self._feed_outputs():  # What an attempt said comes before its end.
                        yield full
                self._turns_offset = stored.offset + 1
                if event and self._merge.sees_event(event) and stored.offset >= self._seen.turns_offset:
                    self._add(TurnUpdate(event=event))
                if self._is_full:
                    yield self._take()
            async for full in self._feed_outputs():
                yield full
            if self._updates:
                yield self._take()
            if self._merge.is_over:
                return
            await self._wait()

    async def _feed_outputs(self) -> AsyncGenerator[list[TurnUpdate]]:
        """Feeds the text that is there, in the log's order, up to what an event still to be read must announce.

        Yields what is to be shown whenever that is enough for one response.
        """
        while True:
            if not self._outputs:
                records = await self._read(envelope.OUTPUTS, self._outputs_offset)
                if not records:
                    return
                self._outputs.extend(records)
                self._outputs_offset = records[-1].offset + 1
            while self._outputs:
                stored = self._outputs[0]
                delta = self._delta(stored)
                if delta is not None and self._merge.awaits(delta):
                    return
                self._outputs.popleft()
                if delta and self._merge.sees_delta(delta) and stored.offset >= self._seen.outputs_offset:
                    self._add(TurnUpdate(delta=delta))
                if self._is_full:
                    yield self._take()

    def _event(self, stored: StoredRecord) -> TurnEvent | None:
        if stored.record.key != self._key:
            return None
        try:
            event = TurnEvent.FromString(stored.record.payload)
        except DecodeError:
            return None  # The manager buries it.
        return event if event.turn_id == self._turn_id else None

    def _delta(self, stored: StoredRecord) -> OutputDelta | None:
        if stored.record.key != self._key:
            return None
        try:
            return OutputDelta.FromString(stored.record.payload)
        except DecodeError:
            return None

    @property
    def _is_full(self) -> bool:
        return len(self._updates) >= _BATCH_UPDATES or self._bytes >= _BATCH_BYTES

    def _add(self, update: TurnUpdate) -> None:
        self._updates.append(update)
        self._bytes += update.ByteSize()

    def _take(self) -> list[TurnUpdate]:
        updates, self._updates, self._bytes = self._updates, [], 0
        return updates

    async def _read(self, topic: str, offset: int, wait: float = 0.0) -> list[StoredRecord]:
        return await self._log.read(topic, self._partition, offset, _READ_RECORDS, wait)

    async def _wait(self) -> None:
        """Returns when either topic has more."""
        reads = [
            asyncio.ensure_future(self._read(envelope.TURNS, self._turns_offset, _WAIT_SECONDS)),
            asyncio.ensure_future(self._read(envelope.OUTPUTS, self._outputs_offset, _WAIT_SECONDS)),
        ]
        try:
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                read.result()
        finally:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
