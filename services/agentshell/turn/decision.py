"""Decides what to do next in a turn. Pure: the same turn always gives the same decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from agentshell.turn import expression, growth, plan
from agentshell.turn.graph import Graph, Verdict
from agentshell.turn.state import usage_of
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import Failure
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

_FIRST_DELAY = timedelta(seconds=0.2)
_LONGEST_DELAY = timedelta(seconds=10)
# An unavailable service of the mesh will be restarted, and its absence is not a failure of the step.
_SERVICE_DELAY = timedelta(seconds=1)
# When the time for an answer is up by our clock, an answer may be in the log that has not been read yet.
INPUT_GRACE = timedelta(seconds=1)
_UNSETTLED = frozenset({t.STEP_STATE_UNSPECIFIED, t.STEP_STATE_SCHEDULED, t.STEP_STATE_FAILED})
_TRANSIENT_CODES = frozenset({code_pb2.UNAVAILABLE, code_pb2.ABORTED})
# Out of a record's 1 MiB; the rest leaves room for what surrounds it.
_MAX_PLAN_BYTES = 960 * 1024
# Larger items or steps belong in memory.
_MAX_GROWTH_BYTES = 512 * 1024


def decide(turn: t.Turn, requested: e.TurnRequested) -> list[e.TurnEvent]:
    """Returns the events that must follow, without headers; none if the turn waits for its steps or is over."""
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


def is_all(turn: t.Turn, decided: Sequence[e.TurnEvent]) -> bool:
    """Returns whether nothing more follows from these decisions until they have an outcome.

    This is certain for attempts in a plan without approvals and races, which covers most decisions. Finding out with
    `decide` takes as long as deciding.
    """
    if not decided or not all(event.HasField("step_scheduled") for event in decided):
        return False
    return not any(step.HasField("join") or step.HasField("approval") for step in turn.plan.steps)


def nanoseconds(value: Timestamp | Duration) -> int:
    """Returns a time since 1970, or a duration, in nanoseconds."""
    return value.seconds * 1_000_000_000 + value.nanos


def end_nanoseconds(turn: t.Turn) -> int:
    """Returns when the turn's time is up: its limit after its beginning, not counting the time it waited."""
    return nanoseconds(turn.create_time) + nanoseconds(turn.limits.max_duration) + nanoseconds(turn.waited_duration)


def expire(turn: t.Turn) -> e.TurnEvent:
    """Returns the event that ends a turn whose time is up."""
    limit = turn.limits.max_duration.ToTimedelta().total_seconds()
    message = f"the turn took longer than its limit of {limit:g} s; {_how_to_set('max_duration', 'max_turn_seconds')}"
    late = _failed(turn, code_pb2.DEADLINE_EXCEEDED, error_pb2.ERROR_REASON_TURN_TIMEOUT, message)
    for step in turn.plan.steps:
        if step.HasField("failure") and step.state in (t.STEP_STATE_FAILED, t.STEP_STATE_SCHEDULED):
            late.turn_failed.failure.cause.CopyFrom(step.failure)
    return late


def input_end_times(turn: t.Turn) -> dict[str, datetime]:
    """Returns the time, in UTC, until which each waiting step can be answered."""
    return {
        step.step_id: step.schedule_time.ToDatetime() + step.approval.wait.ToTimedelta()
        for step in turn.plan.steps
        if step.HasField("approval") and step.state == t.STEP_STATE_SCHEDULED
    }


def expire_inputs(turn: t.Turn, now: datetime) -> list[e.TurnEvent]:
    """Returns the events that fail the steps that nobody answered in time."""
    failure = Failure(
        code=code_pb2.FAILED_PRECONDITION,
        reason=error_pb2.ERROR_REASON_INPUT_EXPIRED,
        message="the question was not answered in time; ask again, or raise the step's approval.wait",
    )
    late = {step_id for step_id, end in input_end_times(turn).items() if end + INPUT_GRACE <= now}
    return [
        e.TurnEvent(step_failed=e.StepFailed(step_id=step.step_id, attempt=step.attempt, failure=failure))
        for step in turn.plan.steps
        if step.step_id in late
    ]


def restart(turn: t.Turn) -> list[e.TurnEvent]:
    """Returns the events that run interrupted steps again, when a new owner takes over a turn."""
    if turn.state == t.TURN_STATE_CANCELLING:  # Their results are no longer wanted.
        return []
    return [
        _scheduled(step, step.attempt + 1)
        for step in turn.plan.steps
        if step.state == t.STEP_STATE_SCHEDULED and not step.HasField("approval")
    ]


def is_transient(failure: Failure) -> bool:
    """Returns whether another attempt may succeed: the failure has a retry delay or a transient code (AIP-194)."""
    return failure.HasField("retry_delay") or failure.code in _TRANSIENT_CODES


def unfit(step: t.Step, reason: error_pb2.ErrorReason.ValueType, message: str) -> e.TurnEvent:
    """Returns the failure of a step that cannot be started or restarted."""
    code = code_pb2.RESOURCE_EXHAUSTED if reason == error_pb2.ERROR_REASON_TOO_LARGE else code_pb2.INVALID_ARGUMENT
    failure = Failure(code=code, reason=reason, message=message)
    return e.TurnEvent(step_failed=e.StepFailed(step_id=step.step_id, attempt=step.attempt, failure=failure))


def _planned(turn: t.Turn, requested: e.TurnRequested) -> e.TurnEvent:
    if requested.plan.steps:
        chosen = plan.own(turn.turn_id, requested.plan)
    elif requested.strategy == t.PLAN_STRATEGY_PLANNED:
        chosen = plan.planned(turn.turn_id, requested.knowledge_namespaces)
    else:
        chosen = plan.direct(turn.turn_id, requested.knowledge_namespaces)
    if over := _beyond_steps(turn, len(chosen.steps)):
        return over
    size = chosen.ByteSize()  # Larger than requested: each name is prefixed with the turn's id.
    if size > _MAX_PLAN_BYTES:
        message = f"the plan takes {size} bytes, the limit is {_MAX_PLAN_BYTES}; ask for fewer steps, or shorter names"
        return _failed(turn, code_pb2.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_TOO_LARGE, message)
    return e.TurnEvent(plan_created=e.PlanCreated(plan=chosen))


def _next(turn: t.Turn) -> list[e.TurnEvent]:
    graph = Graph(turn, lambda step: _may_retry(turn, step))
    if lost := _lost(graph):
        compensating = [step for step in lost if step.on_failure == t.ON_FAILURE_COMPENSATE]
        return _compensate(turn, compensating[0]) if compensating else [_because_of(turn, lost[0])]
    if over := _beyond_budget(turn):
        return [over]
    if extension := _growth(graph):
        return [_extended(turn, graph.steps[extension.step_id], extension)]
    unsettled = [name for name, state in graph.states.items() if state in _UNSETTLED]
    events = [event for name in unsettled if (event := _about(turn, graph, name))]
    losses = [event for event in events if event.WhichOneof("event") in ("step_failed", "turn_failed")]
    return losses[:1] or events or list(_ended(turn, graph))  # After a loss, the others may not have to start.


def _lost(graph: Graph) -> list[t.Step]:
    """Returns the steps whose final failure fails the turn."""
    failed = [name for name, state in graph.states.items() if state == t.STEP_STATE_FAILED and graph.has_ended(name)]
    return [graph.steps[name] for name in failed if graph.steps[name].on_failure != t.ON_FAILURE_CONTINUE]


def _growth(graph: Graph) -> e.PlanExtended | None:
    """Returns how a result extends the plan, or None."""
    succeeded = (graph.steps[name] for name, state in graph.states.items() if state == t.STEP_STATE_SUCCEEDED)
    fertile = [step for step in succeeded if step.HasField("model") or step.HasField("plan")]
    if not fertile:
        return None
    grown = {step.grown_from for step in graph.steps.values()}
    return next(filter(None, (growth.by_result(step) for step in fertile if step.step_id not in grown)), None)


def _about(turn: t.Turn, graph: Graph, name: str) -> e.TurnEvent | None:
    """Returns what to do about one step, or None if there is nothing to do now."""
    match graph.states[name]:
        case t.STEP_STATE_FAILED if not graph.has_ended(name):
            return _scheduled(graph.steps[name], graph.steps[name].attempt + 1)
        case t.STEP_STATE_SCHEDULED if not graph.is_needed(name):
            return e.TurnEvent(step_skipped=e.StepSkipped(step_id=name))
        case t.STEP_STATE_UNSPECIFIED:
            verdict = graph.verdict(graph.steps[name])
            if verdict is Verdict.SKIP or not graph.is_needed(name):
                return e.TurnEvent(step_skipped=e.StepSkipped(step_id=name))
            return _begun(turn, graph.steps[name]) if verdict is Verdict.START else None
        case _:
            return None


def _begun(turn: t.Turn, step: t.Step) -> e.TurnEvent:
    try:
        if not expression.holds(turn, step):
            return e.TurnEvent(step_skipped=e.StepSkipped(step_id=step.step_id))
        if step.fan_out:
            return _extended(turn, step, growth.by_items(step, expression.items(turn, step)))
        expression.subject(turn, step)
    except ValueError as error:
        return unfit(step, error_pb2.ERROR_REASON_PLAN_INVALID, str(error))
    return _scheduled(step, 1)


def _extended(turn: t.Turn, step: t.Step, extension: e.PlanExtended) -> e.TurnEvent:
    if over := _beyond_steps(turn, len(turn.plan.steps) + len(extension.steps)):
        return over
    size = extension.ByteSize()
    if size > _MAX_GROWTH_BYTES:
        message = f"step {step.step_id} makes the plan grow by {size} bytes, the limit is {_MAX_GROWTH_BYTES}"
        if step.state == t.STEP_STATE_UNSPECIFIED:
            return unfit(step, error_pb2.ERROR_REASON_TOO_LARGE, message)
        return _failed(turn, code_pb2.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_TOO_LARGE, message)
    return e.TurnEvent(plan_extended=extension)


def _ended(turn: t.Turn, graph: Graph) -> Iterator[e.TurnEvent]:
    """Yields the event that completes a turn with nothing left to start, or has it wait; none if steps are running."""
    if all(map(graph.has_ended, graph.steps)):
        yield e.TurnEvent(turn_completed=e.TurnCompleted(output=graph.output(), usage=usage_of(turn)))
        return
    scheduled = [name for name, state in graph.states.items() if state == t.STEP_STATE_SCHEDULED]
    if scheduled and all(graph.steps[name].HasField("approval") for name in scheduled):
        yield e.TurnEvent(turn_waiting=e.TurnWaiting(step_ids=scheduled))


def _compensate(turn: t.Turn, lost: t.Step) -> list[e.TurnEvent]:
    """Undoes what succeeded, last first and one at a time, once nothing else is under way."""
    under_way = [s for s in turn.plan.steps if s.state == t.STEP_STATE_SCHEDULED and not s.compensates]
    if under_way:  # These may still succeed, and then must be undone too. Questions have no effect.
        waiting = [step for step in under_way if step.HasField("approval")]
        return [e.TurnEvent(step_skipped=e.StepSkipped(step_id=step.step_id)) for step in waiting]
    undoing = {step.compensates: step for step in turn.plan.steps if step.compensates}
    done = [s for s in turn.plan.steps if s.state == t.STEP_STATE_SUCCEEDED and s.step_id in undoing]
    for step in sorted(done, key=lambda step: step.end_time.ToNanoseconds(), reverse=True):
        undo = undoing[step.step_id]
        match undo.state:
            case t.STEP_STATE_UNSPECIFIED:
                return [_begun(turn, undo)]
            case t.STEP_STATE_SCHEDULED:
                return []
            case t.STEP_STATE_FAILED if _may_retry(turn, undo):
                return [_scheduled(undo, undo.attempt + 1)]
            case t.STEP_STATE_FAILED if undo.on_failure != t.ON_FAILURE_CONTINUE:
                return [_because_of(turn, undo)]
            case _:
                continue
    return [_because_of(turn, lost)]


def _may_retry(turn: t.Turn, step: t.Step) -> bool:
    most = turn.limits.max_attempts
    if step.retry.HasField("max_attempts"):
        most = min(most, step.retry.max_attempts)
    return step.failure_count < most and is_transient(step.failure)


def _scheduled(step: t.Step, attempt: int) -> e.TurnEvent:
    scheduled = e.StepScheduled(step_id=step.step_id, attempt=attempt)
    if step.state == t.STEP_STATE_FAILED:
        first = step.retry.first_delay.ToTimedelta() if step.retry.HasField("first_delay") else _FIRST_DELAY
        longest = step.retry.max_delay.ToTimedelta() if step.retry.HasField("max_delay") else _LONGEST_DELAY
        back_off = min(longest, first * 2 ** (step.failure_count - 1)) if step.failure_count else _SERVICE_DELAY
        scheduled.start_delay.FromTimedelta(max(back_off, step.failure.retry_delay.ToTimedelta()))
    return e.TurnEvent(step_scheduled=scheduled)


def _beyond_steps(turn: t.Turn, count: int) -> e.TurnEvent | None:
    limit = turn.limits.max_steps
    if count <= limit:
        return None
    message = f"the plan has {count} steps, the turn's limit is {limit}; {_how_to_set('max_steps', 'max_steps')}"
    return _failed(turn, code_pb2.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_STEP_LIMIT, message)


def _beyond_budget(turn: t.Turn) -> e.TurnEvent | None:
    """Returns the end of a turn that exceeds its budget. Steps under way count only once they have ended."""
    limits, exhausted = turn.limits, code_pb2.RESOURCE_EXHAUSTED
    if not limits.HasField("max_tokens") and not limits.HasField("max_cost"):
        return None
    usage = usage_of(turn)
    tokens = usage.input_tokens + usage.output_tokens
    if limits.HasField("max_tokens") and tokens > limits.max_tokens:
        advice = _how_to_raise("max_tokens", "max_turn_tokens")
        message = f"the turn used {tokens} tokens, its limit is {limits.max_tokens}; {advice}"
        return _failed(turn, exhausted, error_pb2.ERROR_REASON_TOKEN_LIMIT, message)
    if limits.HasField("max_cost") and not usage.HasField("cost"):
        message = "a step's cost is unknown, and the turn has a limit of cost; price its model, or leave the limit out"
        return _failed(turn, exhausted, error_pb2.ERROR_REASON_COST_LIMIT, message)
    if limits.HasField("max_cost") and usage.cost.amount_micros > limits.max_cost.amount_micros:
        cost, most = usage.cost.amount_micros / 1e6, limits.max_cost.amount_micros / 1e6
        advice = _how_to_raise("max_cost", "max_turn_cost_usd")
        message = f"the turn cost {cost:g} USD, its limit is {most:g}; {advice}"
        return _failed(turn, exhausted, error_pb2.ERROR_REASON_COST_LIMIT, message)
    return None


def _how_to_set(field: str, key: str) -> str:
    """Returns advice about a limit that the request or the pack may choose."""
    return f"set limits.{field} in the request or the pack, up to 'runtime.{key}'"


def _how_to_raise(field: str, key: str) -> str:
    """Returns advice about a limit of which the lowest value applies: only raising that one helps."""
    return f"that is the least of the request's limits.{field}, the pack's and 'runtime.{key}': raise the lowest"


def _because_of(turn: t.Turn, step: t.Step) -> e.TurnEvent:
    failure = Failure(
        code=step.failure.code,
        reason=step.failure.reason,
        message=f"step {step.step_id} failed in attempt {step.attempt}: {step.failure.message}",
        metadata={"step_id": step.step_id},
        cause=step.failure,
    )
    return e.TurnEvent(turn_failed=e.TurnFailed(failure=failure, usage=usage_of(turn)))


def _failed(
    turn: t.Turn, code: code_pb2.Code.ValueType, reason: error_pb2.ErrorReason.ValueType, message: str
) -> e.TurnEvent:
    failure = Failure(code=code, reason=reason, message=message)
    return e.TurnEvent(turn_failed=e.TurnFailed(failure=failure, usage=usage_of(turn)))
