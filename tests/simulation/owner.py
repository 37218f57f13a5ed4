"""A manager's owner, with all its I/O taken away: it folds, decides and writes in the order of `runtime/owner.py`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from agentshell.turn import state
from agentshell.turn.decision import decide, end_nanoseconds, expire, expire_inputs, restart
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_event_pb2 import TurnEvent

if TYPE_CHECKING:
    from tests.simulation.world import World

_MAX_ROUNDS = 200
_BEGIN = datetime(1970, 1, 1)  # noqa: DTZ001 - as Protobuf's timestamps become: UTC without saying so


class Owner:
    """Owns the one turn there is. It may be stale and not know it; `is_alive` ends with a crash or a lost lease.

    `end` is where what was there when it began ends: it decides nothing before it has read that.
    """

    def __init__(self, world: World, end: int, skew_micros: int) -> None:
        self.is_alive = True
        self.position = 0
        self.turn = t.Turn()
        self.inbox: list[TurnEvent] = []
        self._world = world
        self._end = end
        self._skew_micros = skew_micros
        self._own: set[int] = set()  # offsets of own records that are yet to be read
        self._newest_own = -1
        self._newest_id = ""  # of the newest event that counted
        self._is_interrupted = True
        self._awaits_own = False

    def read(self, count: int) -> None:
        """Reads the next records."""
        end = min(self.position + count, len(self._world.log.events))
        while self.position < end:
            offset = self.position
            self.position += 1
            event = self._world.log.events[offset]
            if offset in self._own:
                self._own.discard(offset)
                continue
            if offset >= self._end and event.HasField("step_scheduled"):
                self._is_interrupted = True  # Another owner, who is gone by now, has begun what nobody will finish.
            if offset < self._newest_own:
                self._fold_anew()  # It was decided without knowing this: what counts is the log's order.
            else:
                self._apply(event)

    def handle(self) -> None:
        """Takes in results, decides what follows, begins attempts, and writes."""
        news: list[TurnEvent] = []
        results, self.inbox = self.inbox, []
        for result in results:
            self._add(result, news)
        self._awaits_own = self._awaits_own and bool(self._own)
        if self.position >= self._end and self.turn.turn_id:
            self._decide(news)
        if news:
            self._write(news)

    def has_caught_up(self) -> bool:
        """Returns whether it has read all there is."""
        return self.position == len(self._world.log.events)

    def _decide(self, news: list[TurnEvent]) -> None:
        if self._is_interrupted:
            self._is_interrupted = False
            self._take_over(news)
        now = self._world.nanoseconds(self._skew_micros)
        if self._add_all(expire_inputs(self.turn, _BEGIN + timedelta(microseconds=now // 1000)), news):
            self._awaits_own = True  # Somebody may have answered before that is written: then that counts.
        if self._awaits_own:
            return
        for _ in range(_MAX_ROUNDS):
            turn = self.turn
            if state.is_over(turn) or turn.state == t.TURN_STATE_WAITING:
                return
            if now >= end_nanoseconds(turn) and turn.state != t.TURN_STATE_CANCELLING:
                events = [expire(turn)]
            else:
                events = decide(turn, self._world.requested)
            if not events:
                return
            assert self._add_all(events, news), f"a decision changes nothing: {events}"
        raise AssertionError("deciding has no end")

    def _take_over(self, news: list[TurnEvent]) -> None:
        events = [] if state.is_over(self.turn) else restart(self.turn)
        if not self._world.attempts_outlive_owners:
            self._add_all(events, news)
            return
        for event in events:  # Asked for again as they were.
            scheduled = event.step_scheduled
            self._world.begin(self, self.turn, scheduled.step_id, scheduled.attempt - 1)

    def _write(self, news: list[TurnEvent]) -> None:
        acks = self._world.append(self, news)
        if acks is None or any(duplicate for _, duplicate in acks):
            self._world.end(self)  # FENCED, or the log is not there: the next owner folds anew.
            return
        self._own.update(offset for offset, _ in acks)
        self._newest_own = acks[-1][0]

    def begin(self, news: Iterable[TurnEvent]) -> None:
        """Has attempts begin that are, or are being, written down."""
        for event in news:
            if event.HasField("step_scheduled") and not state.is_over(self.turn):
                self._world.begin(self, self.turn, event.step_scheduled.step_id, event.step_scheduled.attempt)

    def _fold_anew(self) -> None:
        """Folds the turn by the log up to the newest own record; what is between is known then."""
        self.turn = t.Turn()
        for event in self._world.log.events[: self._newest_own + 1]:
            self._apply(event)

    def _add_all(self, events: Iterable[TurnEvent], news: list[TurnEvent]) -> bool:
        added = [self._add(self._world.stamp(event, self._skew_micros, self._newest_id), news) for event in events]
        return any(added)

    def _add(self, event: TurnEvent, news: list[TurnEvent]) -> bool:
        if not self._apply(event):
            return False
        news.append(event)
        return True

    def _apply(self, event: TurnEvent) -> bool:
        if not state.apply(self.turn, event):
            return False
        self._newest_id = event.header.event_id
        return True
