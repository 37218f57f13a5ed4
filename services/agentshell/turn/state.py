"""How events change a turn. The two tables are all there is to know; ARCHITECTURE.md draws its diagram from them.

An event that a table does not list for a state changes nothing. So a result for a step that is settled, a record
written twice, or one by an owner that lost its partition does no harm, and those who fold the same records agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from kfm.content.v1.content_pb2 import Usage
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_event_pb2 import TurnEvent

TurnState = t.TurnState.ValueType
StepState = t.StepState.ValueType

_STEP_EVENTS = ("step_scheduled", "step_succeeded", "step_failed", "step_skipped")

TURN_MOVES: Mapping[tuple[TurnState, str], TurnState] = {
    (t.TURN_STATE_UNSPECIFIED, "turn_requested"): t.TURN_STATE_REQUESTED,
    (t.TURN_STATE_REQUESTED, "plan_created"): t.TURN_STATE_RUNNING,
    (t.TURN_STATE_REQUESTED, "turn_failed"): t.TURN_STATE_FAILED,
    (t.TURN_STATE_REQUESTED, "turn_cancel_requested"): t.TURN_STATE_CANCELLING,
    **{(t.TURN_STATE_RUNNING, event): t.TURN_STATE_RUNNING for event in _STEP_EVENTS},
    (t.TURN_STATE_RUNNING, "turn_completed"): t.TURN_STATE_COMPLETED,
    (t.TURN_STATE_RUNNING, "turn_failed"): t.TURN_STATE_FAILED,
    (t.TURN_STATE_RUNNING, "turn_cancel_requested"): t.TURN_STATE_CANCELLING,
    # A cancellation may be written between an owner's decision and its record: then the record counts.
    (t.TURN_STATE_CANCELLING, "plan_created"): t.TURN_STATE_CANCELLING,
    **{(t.TURN_STATE_CANCELLING, event): t.TURN_STATE_CANCELLING for event in _STEP_EVENTS},
    (t.TURN_STATE_CANCELLING, "turn_completed"): t.TURN_STATE_COMPLETED,
    (t.TURN_STATE_CANCELLING, "turn_failed"): t.TURN_STATE_FAILED,
    (t.TURN_STATE_CANCELLING, "turn_cancelled"): t.TURN_STATE_CANCELLED,
}

STEP_MOVES: Mapping[tuple[StepState, str], StepState] = {
    (t.STEP_STATE_UNSPECIFIED, "step_scheduled"): t.STEP_STATE_SCHEDULED,
    (t.STEP_STATE_UNSPECIFIED, "step_skipped"): t.STEP_STATE_SKIPPED,
    (t.STEP_STATE_SCHEDULED, "step_scheduled"): t.STEP_STATE_SCHEDULED,
    (t.STEP_STATE_SCHEDULED, "step_succeeded"): t.STEP_STATE_SUCCEEDED,
    (t.STEP_STATE_SCHEDULED, "step_failed"): t.STEP_STATE_FAILED,
    (t.STEP_STATE_FAILED, "step_scheduled"): t.STEP_STATE_SCHEDULED,
}

OVER: frozenset[TurnState] = frozenset({t.TURN_STATE_COMPLETED, t.TURN_STATE_FAILED, t.TURN_STATE_CANCELLED})


LAST_EVENTS = frozenset({"turn_completed", "turn_failed", "turn_cancelled"})


def is_over(turn: t.Turn) -> bool:
    """Returns whether nothing will happen in the turn any more."""
    return turn.state in OVER


def apply(turn: t.Turn, event: TurnEvent) -> bool:
    """Changes `turn` by `event` and returns whether that changed anything. A turn begins as an empty `Turn`."""
    kind = event.WhichOneof("event") or ""
    state = TURN_MOVES.get((turn.state, kind))
    if state is None or (turn.turn_id and turn.turn_id != event.turn_id):
        return False
    if kind in _STEP_EVENTS:
        if not _apply_to_step(turn, kind, event):
            return False
    elif kind == "plan_created":
        if turn.HasField("plan"):
            return False
        turn.plan.CopyFrom(event.plan_created.plan)
    elif kind == "turn_requested":
        _begin(turn, event)
    elif state in OVER:
        _end(turn, kind, event)
    turn.state = state
    return True


def usage_of(turn: t.Turn) -> Usage:
    """Returns what the turn's steps used. Its cost is unknown as soon as one step's is."""
    total = Usage()
    total.cost.currency_code = "USD"
    for step in turn.plan.steps:
        if step.state != t.STEP_STATE_SUCCEEDED or not step.result.HasField("usage"):
            continue
        used = step.result.usage
        total.input_tokens += used.input_tokens
        total.output_tokens += used.output_tokens
        total.cached_input_tokens += used.cached_input_tokens
        total.reasoning_tokens += used.reasoning_tokens
        if not used.HasField("cost"):
            total.ClearField("cost")
        elif total.HasField("cost"):
            total.cost.amount_micros += used.cost.amount_micros
    return total


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


def _apply_to_step(turn: t.Turn, kind: str, event: TurnEvent) -> bool:
    payload = getattr(event, kind)
    step = next((step for step in turn.plan.steps if step.step_id == payload.step_id), None)
    state = STEP_MOVES.get((step.state, kind)) if step else None
    if step is None or state is None or not _is_news(step, kind, event):
        return False
    if kind == "step_scheduled":
        step.attempt = payload.attempt
        step.schedule_time.CopyFrom(event.header.time)
    else:
        step.end_time.CopyFrom(event.header.time)
    if kind == "step_succeeded":
        step.attempt = payload.attempt
        step.result.CopyFrom(payload.result)
        step.ClearField("failure")
    elif kind == "step_failed":
        step.failure.CopyFrom(payload.failure)
        step.failure_count += 1
    step.state = state
    return True


def _is_news(step: t.Step, kind: str, event: TurnEvent) -> bool:
    match kind:
        case "step_scheduled":
            return event.step_scheduled.attempt > step.attempt
        case "step_failed":
            return event.step_failed.attempt == step.attempt
        case _:  # Whichever attempt succeeds first settles the step.
            return True
