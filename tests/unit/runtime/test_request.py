"""What a worker learns of the turn's limits."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.unit.turn.driver import Driver, request, says

from agentshell.mesh.config import RuntimeConfig
from agentshell.runtime.request import ASK_AGENT, step_request
from agentshell.turn.state import Fold
from kfm.content.v1.content_pb2 import Money
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import AgentStep, ModelStep, Step, ToolStep, Turn, TurnLimits

THINKS = Step(step_id="think", model=ModelStep())
AGENT = Step(step_id="ask", agent=AgentStep(personality_id="critic"), depends_on=["think"])
TOOL = Step(step_id="ask", tool=ToolStep(name=ASK_AGENT), depends_on=["think"])


def asked_of(step: Step) -> tuple[Turn, StepRequest]:
    driver = Driver(request(step), lambda _: None)
    driver.run()
    return driver.turn, step_request(Fold(driver.turn), driver.events[-1].event, RuntimeConfig(step_seconds=7.5))


def usd(micros: int) -> Money:
    return Money(currency_code="USD", amount_micros=micros)


def limits_below(asking: Step, limits: TurnLimits) -> TurnLimits:
    """Returns the sub-turn's limits once a step has used 20 tokens for 7 micro-USD."""
    result = says("Hm.", tokens=10, cost_micros=7)
    driver = Driver(request(THINKS, asking, limits=limits), lambda step: result if step.HasField("model") else None)
    driver.run()
    return step_request(Fold(driver.turn), driver.events[-1].event, RuntimeConfig()).sub_turn_limits


@pytest.mark.parametrize("asking", [AGENT, TOOL])
def test_a_turn_below_may_use_what_is_left_of_the_tokens_and_the_money(asking: Step) -> None:
    given = TurnLimits(max_tokens=50, max_cost=usd(10))
    assert limits_below(asking, given) == TurnLimits(max_tokens=30, max_cost=usd(3))


def test_where_nothing_is_left_a_turn_below_is_asked_for_with_the_least() -> None:
    given = TurnLimits(max_tokens=20, max_cost=usd(7))
    assert limits_below(AGENT, given) == TurnLimits(max_tokens=1, max_cost=usd(1))


def test_a_turn_without_limits_sets_none_below() -> None:
    assert limits_below(AGENT, TurnLimits()) == TurnLimits()


@pytest.mark.parametrize(
    ("step", "timeout"),
    [
        (THINKS, Duration(seconds=7, nanos=500_000_000)),
        (Step(step_id="think", model=ModelStep(), timeout=Duration(seconds=9)), Duration(seconds=9)),
        (Step(step_id="ask", agent=AgentStep(personality_id="critic")), Duration()),
    ],
)
def test_an_attempt_has_the_steps_time_from_its_beginning_and_the_turns_at_the_most(
    step: Step, timeout: Duration
) -> None:
    turn, asked = asked_of(step)
    assert asked.step.timeout == timeout
    assert asked.deadline.ToDatetime() == turn.create_time.ToDatetime() + turn.limits.max_duration.ToTimedelta()
