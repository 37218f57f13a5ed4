"""Merges what a reader of a turn sees: its events and the text in between, each once and in order."""

from __future__ import annotations

from agentshell.turn.state import Fold, is_over
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_event_pb2 import OutputDelta, TurnEvent


class Merge:
    """Decides, record by record, what a reader of one turn sees of `agent.turns` and `agent.outputs`.

    The caller feeds events in the log's order and, before each one, all deltas at hand that `awaits` does not defer.
    """

    def __init__(self, turn_id: str) -> None:
        self._fold = Fold(t.Turn(turn_id=turn_id))
        self._newest_run: dict[str, str] = {}
        self._next_index: dict[str, int] = {}
        self._void: dict[str, int] = {}  # step -> the attempt whose scheduling had no effect

    @property
    def is_over(self) -> bool:
        """Whether the turn's last event has been fed."""
        return is_over(self._fold.turn)

    def sees_event(self, event: TurnEvent) -> bool:
        """Returns whether the reader sees the event, which must belong to this turn and change it."""
        counts = self._fold.apply(event)
        if not counts and event.HasField("step_scheduled"):
            self._void[event.step_scheduled.step_id] = event.step_scheduled.attempt
        return counts

    def awaits(self, delta: OutputDelta) -> bool:
        """Returns whether the text is of an attempt whose StepScheduled has not been fed yet: feed that first."""
        if delta.turn_id != self._fold.turn.turn_id or self.is_over:
            return False
        step = self._fold.steps.get(delta.step_id)
        return step is None or delta.attempt > max(step.attempt, self._void.get(delta.step_id, 0))

    def sees_delta(self, delta: OutputDelta) -> bool:
        """Returns whether the reader sees the text, which must be next in the newest run of an attempt under way."""
        step = self._fold.steps.get(delta.step_id)
        if delta.turn_id != self._fold.turn.turn_id or step is None:
            return False
        if step.state != t.STEP_STATE_SCHEDULED or step.attempt != delta.attempt:
            return False
        if delta.run_id not in self._next_index:
            self._newest_run[delta.step_id] = delta.run_id
            self._next_index[delta.run_id] = 0
        if self._newest_run[delta.step_id] != delta.run_id or self._next_index[delta.run_id] != delta.index:
            return False
        self._next_index[delta.run_id] += len(delta.texts)
        return True
