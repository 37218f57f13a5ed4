"""What a worker is told of the turn's limits."""

from __future__ import annotations

import pytest
from tests.unit.turn.driver import Driver, request, says

from agentshell.mesh.config import RuntimeConfig
from agentshell.runtime.request import ASK_AGENT, step_request
from agentshell.turn.state import Fold
from kfm.content.v1.content_pb2 import Money
from kfm.turn.v1.turn_pb2 import AgentStep, ModelStep, Step, ToolStep, TurnLimits

THINKS = Step(step_id="think", model=ModelStep())
AGENT = Step(step_id="ask", agent=AgentStep(personality_id="critic"), depends_on=["think"])
TOOL = Step(step_id="ask", tool=ToolStep(name=ASK_AGENT), depends_on=["think"])


def usd(micros: int) -> Money:
    return Money(currency_code="USD", amount_micros=micros)


def limits_below(asking: Step, limits: TurnLimits) -> TurnLimits:
    """Returns what the turn below may use, once a step has used 20 tokens for 7 millionths of a dollar."""
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
