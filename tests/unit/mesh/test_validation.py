"""What requests must satisfy: the contract's rules, and only numbers that JSON has."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from agentshell.mesh import validation
from agentshell.mesh.errors import AgentShellError
from kfm.content.v1 import content_pb2 as content
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_service_pb2 import CreateTurnRequest, TurnSpec

NAN, INFINITY = float("nan"), float("inf")


def fields_of(request: Message) -> list[str]:
    """Returns the fields at fault."""
    try:
        validation.check(request)
    except AgentShellError as error:
        return [field for field, _ in error.violations]
    return []


def struct(**values: Any) -> Struct:
    made = Struct()
    made.update(values)
    return made


def asks(*parts: content.Part, **spec: Any) -> CreateTurnRequest:
    said = content.Message(role=content.ROLE_USER, parts=[content.Part(text=content.Text(text="?")), *parts])
    return CreateTurnRequest(turn=TurnSpec(input=said, **spec))


def test_a_number_that_json_does_not_have_is_refused_by_the_name_of_its_field() -> None:
    result = content.ToolResult(call_id="c")
    result.output.list_value.values.add().struct_value.update({"deep": [1, -INFINITY]})
    tool = t.ToolStep(name="clock", arguments=struct(a=NAN))
    step = t.Step(step_id="a", tool=tool)
    request = asks(content.Part(tool_result=result), plan=t.Plan(steps=[step]))

    assert fields_of(request) == ["turn.input.parts[1].tool_result.output", "turn.plan.steps[0].tool.arguments"]


@given(st.lists(st.floats() | st.text(max_size=20) | st.just(0.0), max_size=5))
def test_numbers_are_refused_if_and_only_if_json_does_not_have_them(values: list[float | str]) -> None:
    expected = any(isinstance(value, float) and not math.isfinite(value) for value in values)
    tool = t.ToolStep(name="clock", arguments=struct(a=values))
    request = asks(plan=t.Plan(steps=[t.Step(step_id="a", tool=tool)]))

    assert fields_of(request) == (["turn.plan.steps[0].tool.arguments"] if expected else [])


@pytest.mark.parametrize("seconds", [2**62, -(2**62), 315_360_001])
def test_durations_that_nobody_can_mean_are_refused(seconds: int) -> None:
    step = t.Step(step_id="a", approval=t.ApprovalStep(question="?"))
    step.approval.wait.seconds = step.timeout.seconds = seconds
    step.retry.first_delay.seconds = step.retry.max_delay.seconds = seconds
    limits = t.TurnLimits()
    limits.max_duration.seconds = seconds

    steps = [
        f"turn.plan.steps[0].{name}" for name in ("approval.wait", "timeout", "retry.first_delay", "retry.max_delay")
    ]
    assert sorted(fields_of(asks(limits=limits, plan=t.Plan(steps=[step])))) == sorted(
        ["turn.limits.max_duration", *steps]
    )


@pytest.mark.parametrize("seconds", [2**62, -(2**62), 253_402_300_800])
def test_times_that_no_calendar_has_are_refused(seconds: int) -> None:
    request = asks()
    request.turn.input.create_time.seconds = seconds

    assert fields_of(request) == ["turn.input.create_time"]
