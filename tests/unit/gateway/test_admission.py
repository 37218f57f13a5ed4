"""What a turn must be to be admitted, and what it is given."""

from datetime import timedelta
from typing import Any

from agentshell.gateway import admission
from agentshell.mesh.config import RuntimeConfig
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Part, Text
from kfm.turn.v1.turn_pb2 import Plan, Step, TurnLimits
from kfm.turn.v1.turn_service_pb2 import TurnSpec


def spec(text: str = "hello", **changes: Any) -> TurnSpec:
    return TurnSpec(input=Message(role=ROLE_USER, parts=[Part(text=Text(text=text))]), **changes)


def test_a_plain_question_is_admitted() -> None:
    assert admission.problems(spec()) == []


def test_a_turn_that_says_nothing_or_that_no_user_says_is_refused_by_field() -> None:
    silent = spec("  ")
    silent.input.role = ROLE_ASSISTANT
    assert [field for field, _ in admission.problems(silent)] == ["turn.input.role", "turn.input.parts"]


def test_a_broken_plan_is_refused_by_field() -> None:
    broken = spec(plan=Plan(steps=[Step(step_id="a", depends_on=["b"])]))
    assert admission.problems(broken) == [("turn.plan.steps[0].depends_on", "'b' is not a step of the plan")]


def test_limits_are_the_narrowest_of_caller_pack_and_configuration() -> None:
    config = RuntimeConfig(max_turn_seconds=100, max_steps=20, max_attempts=3)
    asked = TurnLimits(max_steps=50, max_attempts=1)
    asked.max_duration.FromSeconds(200)
    pack = TurnLimits(max_steps=10)
    pack.max_duration.FromSeconds(30)
    given = admission.limits(asked, pack, config)
    assert (given.max_steps, given.max_attempts) == (10, 1)
    assert given.max_duration.ToTimedelta() == timedelta(seconds=30)


def test_the_digest_tells_two_requests_apart() -> None:
    assert admission.digest(spec("a")) == admission.digest(spec("a"))
    assert admission.digest(spec("a")) != admission.digest(spec("b"))
