"""How events change a turn. The two tables define it completely; ARCHITECTURE.md's diagrams are drawn from them.

An event that a table does not list for a state changes nothing. So a result for a settled step, a record written twice,
or one from an owner that lost its partition does no harm, and everyone who folds the same records agrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from agentshell.content import add_usage
from kfm.content.v1.content_pb2 import Usage
from kfm.error.v1 import error_pb2
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_event_pb2 import TurnEvent

TurnState = t.TurnState.ValueType
StepState = t.StepState.ValueType

_STEP_EVENTS = ("step_scheduled", "step_succeeded", "step_failed", "step_skipped", "input_provided", "plan_extended")

TURN_MOVES: Mapping[tuple[TurnState, str], TurnState] = {
    (t.TURN_STATE_UNSPECIFIED, "turn_requested"): t.TURN_STATE_REQUESTED,
    (t.TURN_STATE_REQUESTED, "plan_created"): t.TURN_STATE_RUNNING,
    (t.TURN_STATE_REQUESTED, "turn_failed"): t.TURN_STATE_FAILED,
    (t.TURN_STATE_REQUESTED, "turn_cancel_requested"): t.TURN_STATE_CANCELLING,
    **{(t.TURN_STATE_RUNNING, event): t.TURN_STATE_RUNNING for event in _STEP_EVENTS},
    (t.TURN_STATE_RUNNING, "turn_completed"): t.TURN_STATE_COMPLETED,
    (t.TURN_STATE_RUNNING, "turn_failed"): t.TURN_STATE_FAILED,
    (t.TURN_STATE_RUNNING, "turn_cancel_requested"): t.TURN_STATE_CANCELLING,
    (t.TURN_STATE_RUNNING, "turn_waiting"): t.TURN_STATE_WAITING,
    # While it waits, only questions are under way. Any other event here was decided by an owner that did not know of
    # the wait; it counts, because it cannot be written again under the same id.
    **{(t.TURN_STATE_WAITING, event): t.TURN_STATE_RUNNING for event in _STEP_EVENTS},
    (t.TURN_STATE_WAITING, "turn_completed"): t.TURN_STATE_COMPLETED,
    (t.TURN_STATE_WAITING, "turn_failed"): t.TURN_STATE_FAILED,
    (t.TURN_STATE_WAITING, "turn_cancel_requested"): t.TURN_STATE_CANCELLING,
    # A cancellation may come between an owner's decision and its record: the record still counts.
    (t.TURN_STATE_CANCELLING, "plan_created"): t.TURN_STATE_CANCELLING,
    **{(t.TURN_STATE_CANCELLING, event): t.TURN_STATE_CANCELLING for event in _STEP_EVENTS},
    (t.TURN_STATE_CANCELLING, "turn_completed"): t.TURN_STATE_COMPLETED,
    (t.TURN_STATE_CANCELLING, "turn_failed"): t.TURN_STATE_FAILED,
    (t.TURN_STATE_CANCELLING, "turn_cancelled"): t.TURN_STATE_CANCELLED,
}

STEP_MOVES: Mapping[tuple[StepState, str], StepState] = {
    (t.STEP_STATE_UNSPECIFIED, "step_scheduled"): t.STEP_STATE_SCHEDULED,
    (t.STEP_STATE_UNSPECIFIED, "step_skipped"): t.STEP_STATE_SKIPPED,
    (t.STEP_STATE_UNSPECIFIED, "step_failed"): t.STEP_STATE_FAILED,  # Its expressions cannot be evaluated.
    (t.STEP_STATE_UNSPECIFIED, "plan_extended"): t.STEP_STATE_EXPANDED,
    (t.STEP_STATE_SCHEDULED, "step_scheduled"): t.STEP_STATE_SCHEDULED,
    (t.STEP_STATE_SCHEDULED, "step_succeeded"): t.STEP_STATE_SUCCEEDED,
    (t.STEP_STATE_SCHEDULED, "input_provided"): t.STEP_STATE_SUCCEEDED,
    (t.STEP_STATE_SCHEDULED, "step_failed"): t.STEP_STATE_FAILED,
    (t.STEP_STATE_SCHEDULED, "step_skipped"): t.STEP_STATE_SKIPPED,  # It is no longer needed.
    (t.STEP_STATE_SUCCEEDED, "plan_extended"): t.STEP_STATE_SUCCEEDED,
    (t.STEP_STATE_FAILED, "step_scheduled"): t.STEP_STATE_SCHEDULED,
}

OVER: frozenset[TurnState] = frozenset({t.TURN_STATE_COMPLETED, t.TURN_STATE_FAILED, t.TURN_STATE_CANCELLED})


LAST_EVENTS = frozenset({"turn_completed", "turn_failed", "turn_cancelled"})


def is_over(turn: t.Turn) -> bool:
    """Returns whether the turn has ended."""
    return turn.state in OVER


def apply(turn: t.Turn, event: TurnEvent) -> bool:
    """Applies `event` to `turn` and returns whether that changed anything. A turn starts as an empty `Turn`."""
    return Fold(turn).apply(event)


class Fold:
    """Folds events into `turn`, which nobody else may change meanwhile. `steps` are the turn's own, by name."""

    def __init__(self, turn: t.Turn) -> None:
        self.turn = turn
        self.steps: Mapping[str, t.Step] = {}
        self._undone: frozenset[str] = frozenset()
        self._find_steps()

    def apply(self, event: TurnEvent) -> bool:
        """Folds an event, and returns whether that changed anything."""
        turn, kind = self.turn, event.WhichOneof("event") or ""
        before = turn.state
        state = TURN_MOVES.get((before, kind))
        if state is None or turn.turn_id not in ("", event.turn_id):
            return False
        if kind in _STEP_EVENTS:
            if not self._apply_to_step(kind, event):
                return False
        elif kind == "plan_created":
            if turn.HasField("plan"):
                return False
            turn.plan.CopyFrom(event.plan_created.plan)
            self._find_steps()
        elif kind == "turn_waiting":
            if not _waits(turn, event.turn_waiting.step_ids):
                return False
        elif kind == "turn_requested":
            _begin(turn, event)
        elif state in OVER:
            _end(turn, kind, event)
        if t.TURN_STATE_WAITING in (before, state):
            _keep_time(turn, state, event)
        turn.state = state
        return True

    def _find_steps(self) -> None:
        self.steps = {step.step_id: step for step in self.turn.plan.steps}
        self._undone = frozenset(step.compensates for step in self.steps.values() if step.compensates)

    def _apply_to_step(self, kind: str, event: TurnEvent) -> bool:
        payload = getattr(event, kind)
        step = self.steps.get(payload.step_id)
        state = STEP_MOVES.get((step.state, kind)) if step else None
        if step is None or state is None or not _is_news(self.turn, step, kind, event):
            return False
        match kind:
            case "step_scheduled":
                step.attempt = payload.attempt
                step.schedule_time.CopyFrom(event.header.time)
            case "step_succeeded":
                step.attempt = payload.attempt
                step.result.CopyFrom(payload.result)
                step.ClearField("failure")
            case "step_failed":
                step.failure.CopyFrom(payload.failure)
                step.failure_count += payload.failure.reason != error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE
            case "input_provided":
                step.result.output.CopyFrom(payload.input)
            case "plan_extended":
                _extend(self.turn, event)
                self._find_steps()
            case _:
                pass
        if kind not in ("step_scheduled", "plan_extended"):
            self._set_end_time(step, event)
        step.state = state
        return True

    def _set_end_time(self, step: t.Step, event: TurnEvent) -> None:
        """Sets the end time. Steps that may be undone end in log order, whatever the workers' clocks say."""
        step.end_time.CopyFrom(event.header.time)
        if step.step_id in self._undone:
            others = (self.steps[name] for name in self._undone - {step.step_id} if name in self.steps)
            latest = max((other.end_time.ToNanoseconds() for other in others), default=0)
            step.end_time.FromNanoseconds(max(step.end_time.ToNanoseconds(), latest + 1))


def usage_of(turn: t.Turn) -> Usage:
    """Returns what the turn's steps used. The cost is unknown if that of any step is."""
    total = Usage()
    total.cost.currency_code = "USD"
    for step in turn.plan.steps:
        if step.state != t.STEP_STATE_SUCCEEDED or not step.result.HasField("usage"):
            continue
        add_usage(total, step.result.usage)
    return total


def _waits(turn: t.Turn, step_ids: Iterable[str]) -> bool:
    """Returns whether only these steps are under way: somebody may have answered before the event was written."""
    under_way = (s.step_id for s in turn.plan.steps if s.state == t.STEP_STATE_SCHEDULED and not s.compensates)
    return set(under_way) == set(step_ids)


def _keep_time(turn: t.Turn, state: TurnState, event: TurnEvent) -> None:
    """Stops the turn's clock while it waits."""
    if state == t.TURN_STATE_WAITING:
        turn.wait_start_time.CopyFrom(event.header.time)
    elif turn.state == t.TURN_STATE_WAITING:
        waited = event.header.time.ToDatetime() - turn.wait_start_time.ToDatetime()
        turn.waited_duration.FromTimedelta(turn.waited_duration.ToTimedelta() + max(waited, timedelta()))
        turn.ClearField("wait_start_time")


def _begin(turn: t.Turn, event: TurnEvent) -> None:
    requested = event.turn_requested
    turn.turn_id = event.turn_id
    turn.session_id = event.header.session_id
    turn.principal_id = requested.principal_id
    turn.personality_id = requested.personality_id
    turn.personality_digest = requested.personality_digest
    turn.input.CopyFrom(requested.input)
    turn.limits.CopyFrom(requested.limits)
    turn.model.CopyFrom(requested.model)
    turn.create_time.CopyFrom(event.header.time)
    turn.priority = requested.priority
    if requested.HasField("parent"):
        turn.parent.CopyFrom(requested.parent)
    if requested.HasField("fork"):
        turn.fork.CopyFrom(requested.fork)


def _end(turn: t.Turn, kind: str, event: TurnEvent) -> None:
    end = getattr(event, kind)
    if kind == "turn_completed":
        turn.output.CopyFrom(end.output)
    else:
        turn.failure.CopyFrom(end.failure)
    turn.usage.CopyFrom(end.usage)
    turn.end_time.CopyFrom(event.header.time)
    for step in turn.plan.steps:
        if step.state == t.STEP_STATE_UNSPECIFIED:
            step.state = t.STEP_STATE_SKIPPED


def _is_news(turn: t.Turn, step: t.Step, kind: str, event: TurnEvent) -> bool:
    match kind:
        case "step_scheduled":
            scheduled = event.step_scheduled
            # An owner that knows of a failure delays the next attempt; a new owner that does not know of it does not.
            knows = step.state != t.STEP_STATE_FAILED or scheduled.HasField("start_delay")
            return knows and scheduled.attempt > step.attempt
        case "step_failed":
            return event.step_failed.attempt == step.attempt
        case "input_provided":
            return step.HasField("approval")
        case "plan_extended":
            return all(other.grown_from != step.step_id for other in turn.plan.steps)
        case _:  # Whichever attempt succeeds first settles the step.
            return True


def _extend(turn: t.Turn, event: TurnEvent) -> None:
    """Inserts the new steps after the one they grew from; the stand-ins replace it as a dependency."""
    grown = event.plan_extended
    steps = list(turn.plan.steps)
    place = 1 + next(index for index, step in enumerate(steps) if step.step_id == grown.step_id)
    for step in steps:
        if grown.step_id in step.depends_on:
            others = [name for name in step.depends_on if name != grown.step_id]
            step.depends_on[:] = [*others, *grown.stand_in_ids]
    later = [t.Step.FromString(step.SerializeToString()) for step in steps[place:]]
    del turn.plan.steps[place:]
    turn.plan.steps.extend(grown.steps)
    turn.plan.steps.extend(later)
