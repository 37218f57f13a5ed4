"""Determines what a fork shares with its source. Pure."""

from __future__ import annotations

from agentshell.turn.plan import PACK_PLAN
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_event_pb2 import TurnRequested
from kfm.turn.v1.turn_service_pb2 import TurnSpec

_LIMITS = ("max_duration", "max_steps", "max_attempts", "max_tokens", "max_cost")
_SETTLED = frozenset((t.STEP_STATE_SUCCEEDED, t.STEP_STATE_SKIPPED, t.STEP_STATE_EXPANDED))
_MADE_OF_ATTEMPTS = ("state", "attempt", "schedule_time", "end_time", "result", "failure", "failure_count")


def spec(source: TurnRequested, changes: TurnSpec) -> TurnSpec:
    """Returns the request for a fork: the changes, and the rest as in the source, except for the session and parent.

    The plan is that of `changes`. Otherwise, if `changes` has no strategy, it is the one that the source's caller gave,
    or that its pack gave if the personality is the same.
    """
    merged = TurnSpec()
    merged.CopyFrom(changes)
    merged.personality_id = changes.personality_id or source.personality_id
    merged.strategy = changes.strategy or source.strategy
    merged.priority = changes.priority or source.priority
    if not changes.HasField("input"):
        merged.input.CopyFrom(source.input)
    if not changes.HasField("model"):
        merged.model.CopyFrom(source.model)
    merged.limits.CopyFrom(source.limits)
    for field in _LIMITS:
        if changes.limits.HasField(field):
            merged.limits.ClearField(field)
    merged.limits.MergeFrom(changes.limits)
    is_anothers = changes.personality_id not in ("", source.personality_id) and source.plan.plan_id == PACK_PLAN
    if not changes.plan.steps and not changes.strategy and not source.fork.step_id and not is_anothers:
        merged.plan.CopyFrom(source.plan)
    return merged


def is_undoing(turn: t.Turn, step_id: str) -> bool:
    """Returns whether the step is a compensation: a past that has been undone cannot be shared."""
    return any(step.step_id == step_id and step.compensates for step in turn.plan.steps)


def past(turn: t.Turn) -> t.Plan:
    """Returns the plan of a turn as a fork can use it: with the finished steps, without the turn's id in the names.

    Steps that were under way or had failed start over, except for a failure that a later step has dealt with.
    """
    shared = t.Plan()
    shared.CopyFrom(turn.plan)
    dealt_with = {name for step in shared.steps if step.state in _SETTLED for name in step.depends_on}
    for step in shared.steps:
        failed_for_good = step.state == t.STEP_STATE_FAILED and step.step_id in dealt_with
        if step.state not in _SETTLED and not failed_for_good:
            for field in _MADE_OF_ATTEMPTS:
                step.ClearField(field)
        _strip(step, f"{turn.turn_id}/")
    return shared


def _strip(step: t.Step, prefix: str) -> None:
    """Removes the turn's id from the names: the inverse of `plan.own`."""
    step.step_id = step.step_id.removeprefix(prefix)
    step.depends_on[:] = [name.removeprefix(prefix) for name in step.depends_on]
    step.compensates = step.compensates.removeprefix(prefix)
    step.grown_from = step.grown_from.removeprefix(prefix)
    if step.model.continues:
        step.model.continues = step.model.continues.removeprefix(prefix)
    if step.tool.asked_by:
        step.tool.asked_by = step.tool.asked_by.removeprefix(prefix)
