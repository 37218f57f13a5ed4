"""A manager's owner without its I/O: it folds, decides and writes in the order of `runtime/owner.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from agentshell.runtime.schedule import Schedule
from agentshell.turn.decision import decide, end_nanoseconds, expire, expire_inputs, is_all, restart
from agentshell.turn.state import Fold, is_over
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_event_pb2 import TurnEvent

if TYPE_CHECKING:
    from tests.simulation.world import World

_MAX_ROUNDS = 200
_BEGIN = datetime(1970, 1, 1)  # noqa: DTZ001 - as in Protobuf's timestamps: naive UTC


@dataclass(slots=True, eq=False)
class _OpenTurn:
    """A turn as its owner sees it."""

    fold: Fold = field(default_factory=lambda: Fold(t.Turn()))
    own: set[int] = field(default_factory=set[int])  # offsets of own records not read yet
    newest_own: int = -1
    newest_id: str = ""  # of the newest event that counted
    is_interrupted: bool = True
    awaits_own: bool = False
    is_scheduled: bool = False
    is_touched: bool = True  # needs a decision

    @property
    def turn(self) -> t.Turn:
        return self.fold.turn

    @property
    def attempts(self) -> set[tuple[str, int]]:
        """The attempts that should be under way."""
        steps = self.turn.plan.steps
        return {(step.step_id, step.attempt) for step in steps if step.state == t.STEP_STATE_SCHEDULED}

    @property
    def rests(self) -> bool:
        """Whether the turn is over or waits for somebody."""
        return is_over(self.turn) or self.turn.state == t.TURN_STATE_WAITING


class Owner:
    """Owns all turns. It may be stale without knowing; `is_alive` becomes False on a crash or a lost lease.

    `end` is the log's end when it began: it decides nothing before it has read up to there.
    """

    def __init__(self, world: World, end: int, skew_micros: int, process: int) -> None:
        self.is_alive = True
        self.process = process
        self.position = 0
        self.inbox: list[TurnEvent] = []
        self._world = world
        self._end = end
        self._skew_micros = skew_micros
        self._turns: dict[str, _OpenTurn] = {}
        self._schedule = Schedule(world.max_active)
        self._leaps = 0  # leaps of the clock seen so far

    def turn(self, turn_id: str) -> t.Turn:
        """Returns a turn as folded here."""
        return self._turns[turn_id].turn

    def read(self, count: int) -> None:
        """Reads the next records."""
        end = min(self.position + count, len(self._world.log.events))
        while self.position < end:
            self._read_one(self.position, self._world.log.events[self.position])
            self.position += 1

    def _read_one(self, offset: int, event: TurnEvent) -> None:
        open_turn = self._turns.get(event.turn_id)
        if open_turn is None:
            open_turn = self._turns[event.turn_id] = _OpenTurn()
            self._plan_in(event.turn_id, open_turn)
        if offset in open_turn.own:
            open_turn.own.discard(offset)
            open_turn.is_touched |= not open_turn.own
            open_turn.awaits_own &= bool(open_turn.own)
            return
        # Attempts begun by another owner, which is gone by now, will not be finished.
        if offset < open_turn.newest_own:
            known = open_turn.attempts
            self._fold_anew(event.turn_id, open_turn)  # The decision missed this event: the log's order counts.
            open_turn.is_interrupted |= not open_turn.attempts <= known
        elif self._apply(open_turn, event):
            open_turn.is_interrupted |= event.HasField("step_scheduled")
            self._go_on(event.turn_id, open_turn)

    def handle(self) -> None:
        """Applies results, decides what follows, begins attempts, and writes."""
        news: list[TurnEvent] = []
        results, self.inbox = self.inbox, []
        for result in results:
            open_turn = self._turns[result.turn_id]
            if self._add(open_turn, result, news) and result.HasField("step_failed"):
                open_turn.awaits_own = True  # Another owner's next attempt may come first: then that counts.
        if self.position >= self._end:
            self._decide_all(news)
        if news:
            self._write(news)

    def has_caught_up(self) -> bool:
        """Returns whether it has read the whole log."""
        return self.position == len(self._world.log.events)

    def _plan_in(self, turn_id: str, open_turn: _OpenTurn) -> None:
        open_turn.is_scheduled = True
        self._schedule.add(turn_id, "acme", self._world.sessions[turn_id])

    def _go_on(self, turn_id: str, open_turn: _OpenTurn) -> None:
        """Resumes a turn that waited for somebody."""
        if not open_turn.is_scheduled and not open_turn.rests:
            self._plan_in(turn_id, open_turn)
            self._schedule.resume(turn_id)

    def _decide_all(self, news: list[TurnEvent]) -> None:
        for turn_id in self._schedule.begin():
            self._turns[turn_id].is_touched = True
        is_late, self._leaps = self._leaps != self._world.leaps, self._world.leaps
        for turn_id, open_turn in self._turns.items():
            if is_late or open_turn.is_touched or open_turn.is_interrupted:
                open_turn.is_touched = False
                if not open_turn.own and open_turn.is_scheduled and open_turn.rests:  # The log says so.
                    open_turn.is_scheduled = False
                    self._schedule.remove(turn_id)
                self._decide(turn_id, open_turn, news)

    def _decide(self, turn_id: str, open_turn: _OpenTurn, news: list[TurnEvent]) -> None:
        turn = open_turn.turn
        if open_turn.is_interrupted:
            open_turn.is_interrupted = False
            self._take_over(turn_id, open_turn, news)
        now = self._world.nanoseconds(self._skew_micros)
        if self._add_all(open_turn, expire_inputs(turn, _BEGIN + timedelta(microseconds=now // 1000)), news):
            open_turn.awaits_own = True  # An answer may be written first: then that counts.
            self._go_on(turn_id, open_turn)
        if open_turn.awaits_own:
            return
        for _ in range(_MAX_ROUNDS):
            if open_turn.rests:
                return
            if now >= end_nanoseconds(turn) and turn.state != t.TURN_STATE_CANCELLING:
                events = [expire(turn)]
            elif self._schedule.has_begun(turn_id):
                events = decide(turn, self._world.requested[turn_id])
            else:
                return
            if not events:
                return
            assert self._add_all(open_turn, events, news), f"a decision changes nothing: {events}"
            if is_all(turn, events):
                assert not decide(turn, self._world.requested[turn_id]), f"more follows than {events}"
        raise AssertionError("deciding has no end")

    def _take_over(self, turn_id: str, open_turn: _OpenTurn, news: list[TurnEvent]) -> None:
        turn = open_turn.turn
        if open_turn.is_scheduled and turn.state != t.TURN_STATE_REQUESTED:
            self._schedule.resume(turn_id)
        for event in [] if is_over(turn) else restart(turn):
            scheduled = event.step_scheduled
            if self._world.attempts_outlive_owners:  # Repeats the same requests.
                self._world.begin(self, open_turn.fold, scheduled.step_id, scheduled.attempt - 1)
            elif not self._world.goes_on(self, scheduled.step_id, scheduled.attempt - 1):
                self._add_all(open_turn, [event], news)

    def _write(self, news: list[TurnEvent]) -> None:
        acks = self._world.append(self, news)
        if acks is None or any(duplicate for _, duplicate in acks):
            self._world.end(self)  # FENCED, or the log is unavailable: the next owner refolds.
            return
        for event, (offset, _) in zip(news, acks, strict=True):
            open_turn = self._turns[event.turn_id]
            open_turn.own.add(offset)
            open_turn.newest_own = offset

    def begin(self, news: Iterable[TurnEvent]) -> None:
        """Begins the attempts whose events are written, or being written."""
        for event in news:
            open_turn = self._turns[event.turn_id]
            if event.HasField("step_scheduled") and not is_over(open_turn.turn):
                scheduled = event.step_scheduled
                self._world.begin(self, open_turn.fold, scheduled.step_id, scheduled.attempt, event.header.event_id)

    def _fold_anew(self, turn_id: str, open_turn: _OpenTurn) -> None:
        """Refolds the turn from the log up to its newest own record, with the events missed in between."""
        open_turn.fold = Fold(t.Turn())
        for event in self._world.log.events[: open_turn.newest_own + 1]:
            if event.turn_id == turn_id:
                self._apply(open_turn, event)
        self._go_on(turn_id, open_turn)

    def _add_all(self, open_turn: _OpenTurn, events: Iterable[TurnEvent], news: list[TurnEvent]) -> bool:
        turn_id = open_turn.turn.turn_id
        added = [
            self._add(open_turn, self._world.stamp(event, turn_id, self._skew_micros, open_turn.newest_id), news)
            for event in events
        ]
        return any(added)

    def _add(self, open_turn: _OpenTurn, event: TurnEvent, news: list[TurnEvent]) -> bool:
        if not self._apply(open_turn, event):
            return False
        news.append(event)
        return True

    def _apply(self, open_turn: _OpenTurn, event: TurnEvent) -> bool:
        if not open_turn.fold.apply(event):
            return False
        open_turn.newest_id = event.header.event_id
        open_turn.is_touched = True
        return True
