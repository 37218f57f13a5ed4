"""Reads one turn from the log, from any position to its end: its events and its text, merged."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from agentshell.gateway.cursor import Cursor
from agentshell.gateway.feed import Feeds, Follower, is_urgent
from agentshell.gateway.turn_index import IndexedTurn
from agentshell.log.log import Log, StoredRecord
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from agentshell.turn.merge import Merge
from agentshell.turn.records import delta_of, event_of
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import TurnUpdate

_READ_RECORDS = 256
# Limits of a response: with one more record of up to 1 MiB, it stays below gRPC's default limit of 4 MiB.
_BATCH_UPDATES = 256
_BATCH_BYTES = 1024 * 1024
_WAIT_SECONDS = 30.0


class TurnReader:
    """Merges `agent.turns` and `agent.outputs` for one reader.

    It always folds the turn from its beginning and returns what lies after the reader's cursor, so what is returned
    does not depend on where the reader was cut off. It reads the log until it has caught up with the feed, and follows
    the feed from there; for a turn that has just begun, from its beginning.
    """

    def __init__(self, log: Log, feeds: Feeds, row: IndexedTurn, partition: int, cursor: Cursor | None) -> None:
        self._log = log
        self._feeds = feeds
        self._partition = partition
        self._key = envelope.session_key(row.tenant_id, row.turn.session_id)
        self._turn_id = row.turn.turn_id
        self._merge = Merge(self._turn_id)
        self._turns_offset = row.turns_offset
        self._outputs_offset = row.outputs_offset
        self._seen = cursor or Cursor(self._turn_id, 0, 0)
        self._events: deque[StoredRecord] = deque()
        self._outputs: deque[StoredRecord] = deque()
        self._has_all_outputs = False  # all text that precedes the newest event read
        self._follower: Follower | None = None
        self._is_near_end = row.is_new
        self._updates: list[TurnUpdate] = []
        self._bytes = 0
        self._is_urgent = False
        self._shown_time = -math.inf

    @property
    def cursor(self) -> Cursor:
        """Where the next reader resumes: after everything returned so far."""
        outputs_offset = self._outputs[0].offset if self._outputs else self._outputs_offset
        return Cursor(
            self._turn_id,
            max(self._turns_offset, self._seen.turns_offset),
            max(outputs_offset, self._seen.outputs_offset),
        )

    async def next(self) -> list[TurnUpdate]:
        """Waits for updates and returns those since the last call, in order; empty once the turn is over."""
        while not self._merge.is_over:
            if not self._events:
                self._events.extend(await self._next_events())
            found = bool(self._events)
            if await self._feed_events() or (self._may_have_outputs and await self._feed_outputs()):
                return self._take()
            if self._updates and (self._is_due or self._merge.is_over):
                return self._take()
            if self._follower or not found:
                await self._wait()
        return []

    def close(self) -> None:
        """Stops reading."""
        if self._follower is not None:
            self._feeds.unfollow(self._follower)
            self._follower = None

    async def _next_events(self) -> list[StoredRecord]:
        """Returns more events: the session's from the feed, or the whole partition's from the log."""
        if follower := self._follow():
            events, outputs = follower.take()
            self._hold(outputs)
            if events or not follower.cut:
                return [stored for stored in events if stored.offset >= self._turns_offset]
            self.close()
            self._has_all_outputs = self._is_near_end = False
        try:
            return await self._log.read(envelope.TURNS, self._partition, self._turns_offset, _READ_RECORDS, 0.0)
        except AgentShellError as error:
            if not _is_gone(error):
                raise
            raise AgentShellError(
                error.reason,
                f"the log no longer has the events of turn {self._turn_id}, only how it ended: call GetTurn, and "
                "raise 'log.retention_days' to keep more",
                metadata={"turn_id": self._turn_id},
            ) from None

    @property
    def _may_have_outputs(self) -> bool:
        """Whether there may be text to feed; tells without reading."""
        return bool(self._outputs) or not self._has_all_outputs

    async def _feed_events(self) -> bool:
        """Feeds the events at hand. Returns True as soon as there is enough for one response."""
        while self._events:
            stored = self._events[0]
            update = self._event(stored)
            may_end = self._may_have_outputs and update and not update.event.HasField("step_scheduled")
            if may_end and await self._feed_outputs():  # An attempt's text comes before its end.
                return True
            self._events.popleft()
            self._turns_offset = stored.offset + 1
            if update and self._merge.sees_event(update.event) and stored.offset >= self._seen.turns_offset:
                self._add(update, stored)
            if self._is_full:
                return True
        return False

    async def _feed_outputs(self) -> bool:
        """Feeds the text at hand, in the log's order, up to text of an attempt whose start has not been read yet.

        Returns True as soon as there is enough for one response.
        """
        while self._outputs or await self._has_more_outputs():
            while self._outputs:
                stored = self._outputs[0]
                update = self._delta(stored)
                if update is not None and self._merge.awaits(update.delta):
                    return False
                self._outputs.popleft()
                if update and self._merge.sees_delta(update.delta) and stored.offset >= self._seen.outputs_offset:
                    self._add(update, stored)
                if self._is_full:
                    return True
        return False

    async def _has_more_outputs(self) -> bool:
        """Reads more text from the log, unless all that is needed has been read or comes with the feed."""
        if self._has_all_outputs:
            return False
        try:
            records = await self._log.read(envelope.OUTPUTS, self._partition, self._outputs_offset, _READ_RECORDS, 0.0)
        except AgentShellError as error:
            if not _is_gone(error):
                raise
            self._outputs_offset = int(error.metadata["base_offset"])  # The steps' results have the lost text.
            return True
        self._hold(records)
        self._has_all_outputs = not records
        return bool(records)

    def _hold(self, outputs: Sequence[StoredRecord]) -> None:
        for stored in outputs:
            if stored.offset >= self._outputs_offset:  # The feed may repeat what was read.
                self._outputs.append(stored)
                self._outputs_offset = stored.offset + 1

    def _event(self, stored: StoredRecord) -> TurnUpdate | None:
        """Returns the update for an event of this turn, or None for any other record."""
        if stored.record.key != self._key:
            return None
        update = TurnUpdate()
        try:
            event = event_of(stored.record, update.event)
        except DecodeError:
            return None  # The manager buries it.
        return update if event.turn_id == self._turn_id else None

    def _delta(self, stored: StoredRecord) -> TurnUpdate | None:
        if stored.record.key != self._key:
            return None
        update = TurnUpdate()
        try:
            delta_of(stored.record, update.delta)
        except DecodeError:
            return None
        return update

    @property
    def _is_due(self) -> bool:
        return self._is_urgent or self._paced_seconds <= 0

    @property
    def _paced_seconds(self) -> float:
        """How long to hold back mere progress."""
        return self._shown_time + self._feeds.pace_seconds - time.monotonic()

    @property
    def _is_full(self) -> bool:
        return len(self._updates) >= _BATCH_UPDATES or self._bytes >= _BATCH_BYTES

    def _add(self, update: TurnUpdate, stored: StoredRecord) -> None:
        self._updates.append(update)
        self._bytes += len(stored.record.payload)
        self._is_urgent = self._is_urgent or is_urgent(stored)

    def _take(self) -> list[TurnUpdate]:
        updates, self._updates, self._bytes, self._is_urgent = self._updates, [], 0, False
        self._shown_time = time.monotonic()
        return updates

    def _follow(self) -> Follower | None:
        """Returns the follower of the feed; None while the feed is ahead of what was read."""
        if self._follower is None:
            offsets = (self._turns_offset, self._outputs_offset)
            self._follower = self._feeds.follow(self._partition, self._key, offsets, near_end=self._is_near_end)
            self._has_all_outputs = self._follower is not None
        return self._follower

    async def _wait(self) -> None:
        """Returns when there may be something to show. At the end of the log it starts to follow the feed."""
        if self._follower is None:
            self._is_near_end = True
            if not self._follow():  # The feed moved on while we read.
                await self._has_more_outputs()
        else:
            paced_seconds = self._paced_seconds
            is_paced = paced_seconds > 0
            await self._follower.wait(paced_seconds if is_paced else _WAIT_SECONDS, patient=is_paced)


def _is_gone(error: AgentShellError) -> bool:
    return error.reason == error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE
