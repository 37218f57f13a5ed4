"""Builds requests to workers. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agentshell.content import calls_of, fill, plain
from agentshell.mesh.config import RuntimeConfig
from agentshell.turn import envelope, expression
from agentshell.turn.decision import end_nanoseconds, nanoseconds
from agentshell.turn.state import Fold, usage_of
from kfm.content.v1.content_pb2 import ROLE_TOOL, Message, Part, ToolResult
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import StepRequest, TurnEvent
from kfm.turn.v1.turn_pb2 import Step, Turn, TurnLimits

# The tool that asks another personality. This may not import it from `agentshell.tool`; a test keeps them equal.
ASK_AGENT = "ask_agent"


def step_request(fold: Fold, scheduled: TurnEvent, config: RuntimeConfig) -> StepRequest:
    """Returns what a worker needs to make the attempt that `scheduled` decides on."""
    turn, steps = fold.turn, fold.steps
    step = steps[scheduled.step_scheduled.step_id]
    before, rounds = sources(steps, step)
    request = StepRequest(
        turn_id=turn.turn_id,
        step=step,
        attempt=scheduled.step_scheduled.attempt,
        input=expression.input_of(turn, step),
        dependencies=[steps[name].result.output for name in before],
        transcript=[_said(steps[name]) for name in rounds],
        personality_id=turn.personality_id,
        personality_digest=turn.personality_digest,
        model=turn.model,
        principal_id=turn.principal_id,
        depth=turn.parent.depth,
        priority=turn.priority,
        remaining_step_count=turn.limits.max_steps - len(turn.plan.steps),
    )
    if turn.limits.HasField("max_tokens"):
        request.max_turn_tokens = turn.limits.max_tokens
    request.step.depends_on[:] = before
    if step.HasField("tool"):
        _complete_call(turn, steps, request.step)
    if has_turn(step):
        _set_sub_turn_limits(turn, request.sub_turn_limits)
    envelope.follow(request.header, scheduled.header)
    envelope.begin(request.header, scheduled.header.event_id, StepRequest.DESCRIPTOR.full_name)
    _set_times(turn, scheduled, request, config)
    return request


def has_turn(step: Step) -> bool:
    """Returns whether another personality answers the step in a turn of its own: an agent step, or that tool."""
    return step.HasField("agent") or step.tool.name == ASK_AGENT


def sources(steps: Mapping[str, Step], step: Step) -> tuple[list[str], list[str]]:
    """Returns the steps whose outputs form the request's `dependencies`, and those for its `transcript`, in order.

    A model step that continues a loop keeps the dependencies of the first; its own end the transcript.
    """
    rounds: list[str] = []
    while step.model.continues:
        rounds[:0] = [step.model.continues, *step.depends_on]
        step = steps[step.model.continues]
    return list(step.depends_on), rounds


def _set_times(turn: Turn, scheduled: TurnEvent, request: StepRequest, config: RuntimeConfig) -> None:
    if scheduled.step_scheduled.HasField("start_delay"):
        start = nanoseconds(scheduled.header.time) + nanoseconds(scheduled.step_scheduled.start_delay)
        envelope.set_time(request.start_time, start)
    if not request.step.HasField("timeout") and not has_turn(request.step):  # A sub-turn has its own limits.
        timeout = request.step.timeout
        timeout.seconds, timeout.nanos = divmod(round(config.step_seconds * 1e9), 1_000_000_000)
    envelope.set_time(request.deadline, end_nanoseconds(turn))


def _set_sub_turn_limits(turn: Turn, left: TurnLimits) -> None:
    """Sets what is left of the turn's tokens and money, but at least the smallest valid limits."""
    limits = turn.limits
    if not limits.HasField("max_tokens") and not limits.HasField("max_cost"):
        return
    used = usage_of(turn)
    if limits.HasField("max_tokens"):
        left.max_tokens = max(1, limits.max_tokens - used.input_tokens - used.output_tokens)
    if limits.HasField("max_cost"):
        left.max_cost.CopyFrom(limits.max_cost)
        left.max_cost.amount_micros = max(1, limits.max_cost.amount_micros - used.cost.amount_micros)


def _said(step: Step) -> Message:
    """Returns the message of a step in a model's loop; for a failed tool, its failure as data."""
    if not step.HasField("tool") or step.result.HasField("output"):
        return step.result.output
    failed = ToolResult(call_id=step.tool.call.call_id, is_error=True)
    reason = error_pb2.ErrorReason.Name(step.failure.reason).removeprefix("ERROR_REASON_")
    fill(failed.output, {"reason": reason, "message": step.failure.message or "the tool was not run"})
    return Message(role=ROLE_TOOL, parts=[Part(tool_result=failed)])


def _complete_call(turn: Turn, steps: Mapping[str, Step], step: Step) -> None:
    """Completes a tool call with its arguments: the model's, or the plan's merged with the step's input."""
    call = step.tool.call
    if step.tool.asked_by:
        calls = calls_of(steps[step.tool.asked_by].result.output)
        call.CopyFrom(next(asked for asked in calls if asked.call_id == call.call_id))
        return
    call.call_id, call.name = step.step_id, step.tool.name
    given = expression.subject(turn, step)
    fill(call.arguments, {**plain(step.tool.arguments), **(given if isinstance(given, Mapping) else {})})
