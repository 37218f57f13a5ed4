"""Checks what must hold of a log when all its turns are over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tests.simulation.log import Log

from agentshell.turn import state
from agentshell.turn.merge import Merge
from agentshell.turn.state import Fold
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

_ENDED = (t.STEP_STATE_SUCCEEDED, t.STEP_STATE_FAILED, t.STEP_STATE_SKIPPED, t.STEP_STATE_EXPANDED)


def check(log: Log, sessions: Mapping[str, str], *, one_owner: bool) -> None:
    """Raises AssertionError if a turn is wrong, or began before the one ahead of it in its session was done.

    Some checks hold only for one owner at a time: an owner that goes on after losing its lease may decide on events
    that do not count.
    """
    turns: dict[str, _Turn] = {}
    for event, has_changed in zip(log.events, log.has_changed, strict=True):
        turn = turns.setdefault(event.turn_id, _Turn(event.turn_id, one_owner=one_owner))
        turn.see(event, has_changed=has_changed)
        if one_owner and has_changed and event.HasField("plan_created"):
            before = list(turns)[: list(turns).index(event.turn_id)]
            ahead = [turns[other] for other in before if sessions[other] == sessions[event.turn_id]]
            assert all(other.is_done for other in ahead), "turns of one session take their turn"
    for turn_id, turn in turns.items():
        turn.end(log.folds[turn_id].turn)


class _Turn:
    """Folds a turn again and checks every event on the way."""

    def __init__(self, turn_id: str, *, one_owner: bool) -> None:
        self._fold = Fold(t.Turn())
        self._merge = Merge(turn_id)
        self._one_owner = one_owner
        self._states: dict[str, int] = {}  # of the steps, before the next event; by step id
        self._ended: t.Turn | None = None
        self._has_waited = False
        self._settled = Counter[str]()
        self._scheduled: list[str] = []

    @property
    def is_done(self) -> bool:
        """Whether the next turn of its session may have begun: this one is over, or has waited for somebody."""
        return self._has_waited or state.is_over(self._fold.turn)

    def see(self, event: e.TurnEvent, *, has_changed: bool) -> None:
        """Checks the next event of the turn."""
        was = self._fold.turn.state
        assert self._fold.apply(event) == has_changed, "two folds of one log agree"
        assert not self._fold.apply(event), "an event written twice counts once"
        assert self._merge.sees_event(event) == has_changed, "a reader sees what counts, once"
        if not has_changed:
            return
        assert self._ended is None, "nothing follows the end"
        turn, kind = self._fold.turn, event.WhichOneof("event") or ""
        self._check_moves(was, kind)
        self._has_waited = self._has_waited or turn.state == t.TURN_STATE_WAITING
        if state.is_over(turn):
            self._ended = t.Turn()
            self._ended.CopyFrom(turn)
        if kind in ("step_succeeded", "input_provided"):
            self._settled[getattr(event, kind).step_id] += 1
        if kind == "step_scheduled":
            self._scheduled.append(event.step_scheduled.step_id)
            if self._one_owner:
                self._check_order(event.step_scheduled.step_id)

    def end(self, turn: t.Turn) -> None:
        """Checks the whole turn against the log's."""
        assert self._merge.is_over
        assert self._fold.turn == turn == self._ended
        assert all(count == 1 for count in self._settled.values()), "no step succeeds twice"
        if turn.state == t.TURN_STATE_FAILED and (lost := turn.failure.metadata.get("step_id")):
            assert self._fold.steps[lost].state == t.STEP_STATE_FAILED, "a turn fails for a step that has failed"
        undoes = {step.step_id: step.compensates for step in turn.plan.steps if step.compensates}
        if turn.state == t.TURN_STATE_COMPLETED:
            assert not undoes.keys() & set(self._scheduled), "what completes is not undone"
        began = list(dict.fromkeys(undoes[step_id] for step_id in self._scheduled if step_id in undoes))
        if self._one_owner:
            assert began == sorted(began, key=list(self._settled).index, reverse=True), (
                "the last success is undone first"
            )

    def _check_moves(self, was: t.TurnState.ValueType, kind: str) -> None:
        turn, before = self._fold.turn, self._states
        self._states = {step.step_id: step.state for step in turn.plan.steps}
        assert state.TURN_MOVES.get((was, kind)) == turn.state, "the turn moves by its table"
        if kind in state.LAST_EVENTS or kind == "plan_created":
            return
        for step in turn.plan.steps:
            old = before.get(step.step_id, t.STEP_STATE_UNSPECIFIED)
            if step.state != old:
                assert state.STEP_MOVES.get((old, kind)) == step.state, "a step moves by its table"  # pyright: ignore[reportArgumentType] - a state

    def _check_order(self, step_id: str) -> None:
        step = self._fold.steps[step_id]
        states = [self._fold.steps[name].state for name in step.depends_on]
        succeeded = sum(each == t.STEP_STATE_SUCCEEDED for each in states)
        match step.join.WhichOneof("kind"):
            case "any":
                assert succeeded >= 1, "one that it depends on has succeeded"
            case "quorum":
                assert succeeded >= step.join.quorum.count, "so many that it depends on have succeeded"
            case _:
                assert all(each in _ENDED for each in states), "all that it depends on have ended"
