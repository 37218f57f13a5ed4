"""How plans grow: by a model's tool calls, by the steps that a model writes, by a list to fan out over."""

from __future__ import annotations

from collections.abc import Sequence

from agentshell.content import Plain, calls_of, fill
from agentshell.turn import plan
from kfm.content.v1.content_pb2 import ToolCall
from kfm.turn.v1.turn_event_pb2 import PlanExtended
from kfm.turn.v1.turn_pb2 import ON_FAILURE_CONTINUE, ModelStep, Step, ToolStep


def by_result(step: Step) -> PlanExtended | None:
    """Returns how a step that succeeded extends its plan, or None."""
    match step.WhichOneof("kind"):
        case "plan" if step.result.plan.steps:
            return _written(step)
        case "model" if calls := calls_of(step.result.output):
            return _asked(step, calls)
        case _:
            return None


def by_items(step: Step, items: Sequence[Plain]) -> PlanExtended:
    """Returns the steps that replace one that fans out: one per item. Raises ValueError for a non-JSON item."""
    grown = PlanExtended(step_id=step.step_id)
    for index, item in enumerate(items):
        each = grown.steps.add()
        each.CopyFrom(step)
        each.step_id = f"{step.step_id}#{index}"
        each.grown_from = step.step_id
        each.ClearField("fan_out")
        each.ClearField("condition")
        fill(each.item, item)
        grown.stand_in_ids.append(each.step_id)
    return grown


def root_of(step: Step) -> tuple[str, int]:
    """Returns the first model step of a model step's loop, and the number of the round, from 1."""
    if not step.model.continues:
        return step.step_id, 1
    root, _, number = step.step_id.rpartition("#")
    return root, int(number)


def _asked(step: Step, calls: Sequence[ToolCall]) -> PlanExtended:
    """Returns steps for the tools, in parallel, and then the model again, which deals with tools that fail."""
    root, number = root_of(step)
    tools = [
        Step(
            step_id=f"{root}#{number}.{index}",
            depends_on=[step.step_id],
            # The arguments stay in the model's output, as they may be large.
            tool=ToolStep(name=call.name, call=ToolCall(call_id=call.call_id, name=call.name), asked_by=step.step_id),
            on_failure=ON_FAILURE_CONTINUE,
            grown_from=step.step_id,
        )
        for index, call in enumerate(calls)
    ]
    following = Step(
        step_id=f"{root}#{number + 1}",
        depends_on=[tool.step_id for tool in tools],
        on_failure=step.on_failure,
        grown_from=step.step_id,
        model=ModelStep(),
    )
    following.model.CopyFrom(step.model)
    following.model.continues = step.step_id
    for field in ("timeout", "retry", "item"):
        if step.HasField(field):
            getattr(following, field).CopyFrom(getattr(step, field))
    following.input = step.input
    return PlanExtended(step_id=step.step_id, steps=[*tools, following], stand_in_ids=[following.step_id])


def _written(step: Step) -> PlanExtended:
    steps = plan.within(step.step_id, step.result.plan).steps
    needed = {name for written in steps for name in written.depends_on}
    for written in steps:
        written.grown_from = step.step_id
    last = [written.step_id for written in steps if written.step_id not in needed and not written.compensates]
    return PlanExtended(step_id=step.step_id, steps=steps, stand_in_ids=last)
