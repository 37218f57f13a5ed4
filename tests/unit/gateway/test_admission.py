"""What a turn needs to be admitted, and what it gets."""

from typing import Any

from agentshell.gateway import admission
from agentshell.mesh.config import RuntimeConfig
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Money, Part, Text
from kfm.personality.v1.personality_service_pb2 import Personality
from kfm.turn.v1.turn_pb2 import (
    PLAN_STRATEGY_DIRECT,
    PLAN_STRATEGY_PLANNED,
    STEP_STATE_SUCCEEDED,
    ApprovalStep,
    ModelStep,
    ParentStep,
    Plan,
    Step,
    StepResult,
    ToolStep,
    TurnLimits,
)
from kfm.turn.v1.turn_service_pb2 import TurnSpec

USD_2 = Money(currency_code="USD", amount_micros=2_000_000)


def spec(text: str = "hello", **changes: Any) -> TurnSpec:
    return TurnSpec(input=Message(role=ROLE_USER, parts=[Part(text=Text(text=text))]), **changes)


def test_a_plain_question_is_admitted() -> None:
    assert admission.problems(spec()) == []


def test_a_turn_that_says_nothing_or_that_no_user_says_is_refused_by_field() -> None:
    silent = spec("  ")
    silent.input.role = ROLE_ASSISTANT
    assert [field for field, _ in admission.problems(silent)] == ["input.role", "input.parts"]


def test_a_broken_plan_is_refused_by_field() -> None:
    broken = spec(plan=Plan(steps=[Step(step_id="a", depends_on=["b"])]))
    assert admission.problems(broken) == [("plan.steps[0].depends_on", "'b' is not a step of the plan")]


def test_what_the_shell_says_of_steps_and_schemas_it_cannot_check_are_refused_by_field() -> None:
    asks = Step(step_id="c", approval=ApprovalStep(question="May I?"))
    asks.approval.schema.update({"type": "object", "properties": {"pattern": {"pattern": "(?=a)"}}})
    steps = [
        Step(step_id="a", model=ModelStep(continues="b"), state=STEP_STATE_SUCCEEDED, failure_count=1, grown_from="b"),
        Step(step_id="b", tool=ToolStep(name="t", asked_by="a"), result=StepResult()),
        asks,
    ]
    assert [field.removeprefix("plan.") for field, _ in admission.problems(spec(plan=Plan(steps=steps)))] == [
        "steps[0].failure_count",
        "steps[0].grown_from",
        "steps[0].state",
        "steps[0].model.continues",
        "steps[1].result",
        "steps[1].tool.asked_by",
        "steps[2].approval.schema",
    ]


def test_a_limit_of_cost_is_more_than_nothing_and_in_usd() -> None:
    limits = TurnLimits(max_cost=Money(currency_code="EUR"))
    assert [field for field, _ in admission.problems(spec(limits=limits))] == [
        "limits.max_cost.currency_code",
        "limits.max_cost.amount_micros",
    ]


def test_a_turn_is_planned_as_its_caller_says_else_as_its_pack_does_else_directly() -> None:
    own, packs = Plan(plan_id="own", steps=[Step(step_id="a")]), Plan(plan_id="pack", steps=[Step(step_id="b")])
    giving, planning = Personality(plan=packs), Personality(strategy=PLAN_STRATEGY_PLANNED)
    assert [
        admission.planning(asked, pack)
        for asked, pack in [
            (spec(plan=own), giving),
            (spec(strategy=PLAN_STRATEGY_PLANNED), giving),
            (spec(strategy=PLAN_STRATEGY_DIRECT), planning),
            (spec(), giving),
            (spec(), planning),
            (spec(), Personality()),
        ]
    ] == [
        (own, PLAN_STRATEGY_DIRECT),
        (Plan(), PLAN_STRATEGY_PLANNED),
        (Plan(), PLAN_STRATEGY_DIRECT),
        (packs, PLAN_STRATEGY_DIRECT),
        (Plan(), PLAN_STRATEGY_PLANNED),
        (Plan(), PLAN_STRATEGY_DIRECT),
    ]


def test_an_approval_waits_as_long_as_it_asks_for_and_no_longer_than_configured() -> None:
    plan = Plan(steps=[Step(step_id=name, approval=ApprovalStep(question="May I?")) for name in "abc"])
    plan.steps[1].approval.wait.FromSeconds(5)
    plan.steps[2].approval.wait.FromSeconds(500)
    admission.bound_waits(plan, RuntimeConfig(approval_wait_seconds=50))
    assert [step.approval.wait.ToSeconds() for step in plan.steps] == [50, 5, 50]


def test_the_digest_tells_two_requests_apart() -> None:
    assert admission.digest(spec("a")) == admission.digest(spec("a"))
    assert admission.digest(spec("a")) != admission.digest(spec("b"))


def test_attempts_at_a_step_that_has_less_left_each_time_ask_for_the_same_sub_turn() -> None:
    asked = spec("a", parent=ParentStep(turn_id="T", step_id="T/ask", depth=1))
    asked.limits.MergeFrom(TurnLimits(max_tokens=10, max_cost=USD_2))
    asked.limits.max_duration.FromSeconds(9)
    again = TurnSpec()
    again.CopyFrom(asked)
    again.limits.MergeFrom(TurnLimits(max_tokens=1, max_cost=Money(currency_code="USD", amount_micros=1)))
    again.limits.max_duration.FromSeconds(8)
    assert admission.digest(asked) == admission.digest(again)
    again.limits.max_steps = 3
    assert admission.digest(asked) != admission.digest(again)
