"""What a turn may use: who sets the limits, and who has the last word."""

from datetime import timedelta
from typing import Any

from agentshell.gateway.limits import limits_of
from agentshell.mesh.config import RuntimeConfig
from kfm.content.v1.content_pb2 import Money
from kfm.turn.v1.turn_pb2 import TurnLimits

USD_2 = Money(currency_code="USD", amount_micros=2_000_000)


def bounded(seconds: float, max_steps: int, max_attempts: int, **others: Any) -> TurnLimits:
    limits = TurnLimits(max_steps=max_steps, max_attempts=max_attempts, **others)
    limits.max_duration.FromTimedelta(timedelta(seconds=seconds))
    return limits


def test_time_steps_and_attempts_are_the_callers_else_the_packs_else_the_default_up_to_the_most() -> None:
    config = RuntimeConfig(max_turn_seconds=300, max_steps=100, max_attempts=5)
    pack, asked = TurnLimits(max_steps=40, max_attempts=2), TurnLimits(max_steps=50)
    pack.max_duration.FromTimedelta(timedelta(seconds=150.5))
    asked.max_duration.FromTimedelta(timedelta(seconds=200))
    none, beyond = TurnLimits(), bounded(301, 101, 6)
    given = [
        limits_of(by_caller, by_pack, config, is_below=False)
        for by_caller, by_pack in [(none, none), (none, pack), (asked, pack), (asked, none), (beyond, pack)]
    ]
    assert given == [
        bounded(120, 25, 3),
        bounded(150.5, 40, 2),
        bounded(200, 50, 2),
        bounded(200, 50, 3),
        bounded(300, 100, 5),
    ]


def test_a_default_is_no_more_than_the_most() -> None:
    config = RuntimeConfig(max_turn_seconds=30, max_steps=5, max_attempts=1)
    assert limits_of(TurnLimits(), TurnLimits(), config, is_below=False) == bounded(30, 5, 1)


def test_a_turn_below_another_has_what_its_pack_says_and_no_more_than_that_has_left() -> None:
    config = RuntimeConfig(max_turn_seconds=1000)
    pack = bounded(200, 40, 2)
    for left, least in [(bounded(90, 60, 3), bounded(90, 40, 2)), (bounded(900, 10, 1), bounded(200, 10, 1))]:
        assert limits_of(left, pack, config, is_below=True) == least


def test_tokens_and_cost_are_the_least_of_caller_pack_and_configuration() -> None:
    config = RuntimeConfig(max_turn_cost_usd=0.5)
    asked, pack = TurnLimits(max_tokens=900, max_cost=USD_2), TurnLimits(max_tokens=1000)
    half = Money(currency_code="USD", amount_micros=500_000)
    for first, second in [(asked, pack), (pack, asked)]:
        given = limits_of(first, second, config, is_below=False)
        assert given == bounded(120, 25, 3, max_tokens=900, max_cost=half)


def test_tokens_and_cost_have_no_limit_that_nobody_gave() -> None:
    given = limits_of(TurnLimits(), TurnLimits(), RuntimeConfig(), is_below=False)
    assert not given.HasField("max_tokens")
    assert not given.HasField("max_cost")
    given = limits_of(TurnLimits(max_cost=USD_2), TurnLimits(), RuntimeConfig(), is_below=False)
    assert given.max_cost == USD_2
