"""What is to be done next in a turn. Pure: the same turn gives the same decisions, whoever asks and however often."""

from __future__ import annotations

from datetime import timedelta

from google.rpc import code_pb2

from agentshell.turn import plan
from agentshell.turn.state import usage_of
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import Failure
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

_FIRST_DELAY = timedelta(seconds=0.2)
_LONGEST_DELAY = timedelta(seconds=10)
_TRANSIENT_CODES = frozenset({code_pb2.UNAVAILABLE, code_pb2.ABORTED})


def decide(turn: t.Turn, requested: e.TurnRequested) -> list[e.TurnEvent]:
    """Returns the events that must follow, without headers; none while the turn waits for its steps or is over."""
    match turn.state:
        case t.TURN_STATE_REQUESTED:
            return [_planned(turn, requested)]
        case t.TURN_STATE_RUNNING:
            return _next(turn)
        case t.TURN_STATE_CANCELLING:
            failure = Failure(
                code=code_pb2.CANCELLED, reason=error_pb2.ERROR_REASON_CANCELLED, message="the turn was cancelled"
            )
            return [e.TurnEvent(turn_cancelled=e.TurnCancelled(failure=failure, usage=usage_of(turn)))]
        case _:
            return []


def expire(turn: t.Turn) -> e.TurnEvent:
    """Returns the event that ends a turn whose time is up."""
    limit = turn.limits.max_duration.ToTimedelta().total_seconds()
    return _failed(
        turn,
        Failure(
            code=code_pb2.DEADLINE_EXCEEDED,
            reason=error_pb2.ERROR_REASON_TURN_TIMEOUT,
            message=f"the turn took longer than its limit of {limit:g} s; ask for less, or raise limits.max_duration",
        ),
    )


def restart(turn: t.Turn) -> list[e.TurnEvent]:
    """Returns the events that make interrupted steps run again: what a new owner decides about another's turn."""
    return [_scheduled(step, step.attempt + 1) for step in turn.plan.steps if step.state == t.STEP_STATE_SCHEDULED]


def is_transient(failure: Failure) -> bool:
    """Returns whether another attempt may succeed: the failure says when, or is of a kind that passes (AIP-194)."""
    return failure.HasField("retry_delay") or failure.code in _TRANSIENT_CODES


def _planned(turn: t.Turn, requested: e.TurnRequested) -> e.TurnEvent:
    given = requested.plan
    chosen = plan.own(turn.turn_id, given) if given.steps else plan.direct(turn.turn_id, requested.knowledge_namespaces)
    if len(chosen.steps) <= turn.limits.max_steps:
        return e.TurnEvent(plan_created=e.PlanCreated(plan=chosen))
    message = (
        f"the plan has {len(chosen.steps)} steps, the turn's limit is {turn.limits.max_steps}; raise limits.max_steps"
    )
    return _failed(
        turn, Failure(code=code_pb2.RESOURCE_EXHAUSTED, reason=error_pb2.ERROR_REASON_STEP_LIMIT, message=message)
    )


def _next(turn: t.Turn) -> list[e.TurnEvent]:
    ended: set[str] = set()
    events: list[e.TurnEvent] = []
    for step in turn.plan.steps:
        if step.state == t.STEP_STATE_FAILED and _may_retry(turn, step):
            events.append(_scheduled(step, step.attempt + 1))
        elif step.state == t.STEP_STATE_FAILED and step.on_failure != t.ON_FAILURE_CONTINUE:
            return [_failed(turn, _because_of(step))]
        elif step.state in (t.STEP_STATE_SUCCEEDED, t.STEP_STATE_FAILED, t.STEP_STATE_SKIPPED):
            ended.add(step.step_id)
    if len(ended) == len(turn.plan.steps):
        output = turn.plan.steps[-1].result.output
        return [e.TurnEvent(turn_completed=e.TurnCompleted(output=output, usage=usage_of(turn)))]
    return events + [
        _scheduled(step, 1)
        for step in turn.plan.steps
        if step.state == t.STEP_STATE_UNSPECIFIED and ended.issuperset(step.depends_on)
    ]


def _may_retry(turn: t.Turn, step: t.Step) -> bool:
    return step.failure_count < turn.limits.max_attempts and is_transient(step.failure)


def _scheduled(step: t.Step, attempt: int) -> e.TurnEvent:
    scheduled = e.StepScheduled(step_id=step.step_id, attempt=attempt)
    if step.state == t.STEP_STATE_FAILED:
        back_off = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (step.failure_count - 1))
        scheduled.start_delay.FromTimedelta(max(back_off, step.failure.retry_delay.ToTimedelta()))
    return e.TurnEvent(step_scheduled=scheduled)


def _because_of(step: t.Step) -> Failure:
    return Failure(
        code=step.failure.code,
        reason=step.failure.reason,
        message=f"step {step.step_id} failed in attempt {step.attempt}: {step.failure.message}",
        metadata={"step_id": step.step_id},
        cause=step.failure,
    )


def _failed(turn: t.Turn, failure: Failure) -> e.TurnEvent:
    return e.TurnEvent(turn_failed=e.TurnFailed(failure=failure, usage=usage_of(turn)))
