"""What a turn may use. Each limit that is reached gives a failure that says so."""

import pytest
from tests.unit.turn.driver import UNAVAILABLE, Driver, asks, fails, noop, request, says

from agentshell.turn.decision import is_transient
from kfm.content.v1.content_pb2 import Money
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import Failure
from kfm.turn.v1 import turn_pb2 as t


def run(limits: t.TurnLimits, result: t.StepResult, *steps: t.Step) -> t.Turn:
    return Driver(request(*steps, limits=limits), lambda step: says("x") if step.HasField("tool") else result).run()


def test_a_model_that_asks_for_tools_without_end_hits_the_limit_of_steps() -> None:
    turn = run(t.TurnLimits(max_steps=6), asks("clock"))
    assert turn.failure.reason == error_pb2.ERROR_REASON_STEP_LIMIT
    assert turn.failure.message == (
        "the plan has 7 steps, the turn's limit is 6; set limits.max_steps in the request or the pack, up to "
        "'runtime.max_steps'"
    )
    assert len(turn.plan.steps) == 5


def test_a_fan_out_counts_its_items_among_the_steps() -> None:
    turn = run(t.TurnLimits(max_steps=4), says(""), noop("first"), noop("each", fan_out="[1, 2, 3]"), noop("x", "each"))
    assert turn.failure.reason == error_pb2.ERROR_REASON_STEP_LIMIT


def test_a_plan_that_is_larger_than_a_record_with_the_turns_name_before_each_step_fails_the_turn() -> None:
    names = [f"{'x' * 60}-{index}" for index in range(300)]
    steps = [noop(name, *names[max(0, index - 64) : index]) for index, name in enumerate(names)]
    turn = run(t.TurnLimits(max_steps=1000), says(""), *steps)
    assert turn.state == t.TURN_STATE_FAILED
    assert turn.failure.reason == error_pb2.ERROR_REASON_TOO_LARGE


@pytest.mark.parametrize(
    ("limits", "result", "told"),
    [
        (t.TurnLimits(max_tokens=5), says("", tokens=3), "the turn used 6 tokens, its limit is 5"),
        (t.TurnLimits(max_cost=Money(amount_micros=2)), says("", cost_micros=3), "the turn cost 3e-06 USD"),
        (t.TurnLimits(max_cost=Money(amount_micros=2)), says("", cost_micros=None), "a step's cost is unknown"),
    ],
)
def test_what_a_step_used_beyond_the_budget_ends_the_turn_before_the_next(
    limits: t.TurnLimits, result: t.StepResult, told: str
) -> None:
    turn = run(limits, result, noop("a"), noop("b", "a"))
    assert turn.state == t.TURN_STATE_FAILED
    assert turn.failure.message.startswith(told)
    assert turn.plan.steps[1].state == t.STEP_STATE_SKIPPED
    assert turn.usage == result.usage


def test_a_budget_that_is_just_used_up_is_enough() -> None:
    limits = t.TurnLimits(max_tokens=6, max_cost=Money(amount_micros=3))
    assert run(limits, says("", tokens=3, cost_micros=3)).state == t.TURN_STATE_COMPLETED


def test_without_a_limit_of_cost_an_unknown_one_stays_unknown() -> None:
    turn = run(t.TurnLimits(), says("", cost_micros=None))
    assert turn.state == t.TURN_STATE_COMPLETED
    assert not turn.usage.HasField("cost")


@pytest.mark.parametrize(("of_step", "of_turn", "attempts"), [(None, 3, 3), (2, 3, 2), (5, 3, 3), (1, 3, 1)])
def test_a_step_is_tried_as_often_as_its_policy_says_and_the_turn_allows(
    of_step: int | None, of_turn: int, attempts: int
) -> None:
    step = noop("a")
    if of_step:
        step.retry.max_attempts = of_step
    driver = Driver(request(step, limits=t.TurnLimits(max_attempts=of_turn)), lambda _: fails(UNAVAILABLE))
    assert driver.run().plan.steps[0].attempt == attempts


def test_the_waits_between_attempts_double_up_to_the_longest() -> None:
    step = noop("a")
    step.retry.first_delay.FromMilliseconds(100)
    step.retry.max_delay.FromMilliseconds(250)
    driver = Driver(request(step, limits=t.TurnLimits(max_attempts=4)), lambda _: fails(UNAVAILABLE))
    driver.run()
    scheduled = [each.event.step_scheduled for each in driver.events if each.event.HasField("step_scheduled")]
    assert [each.start_delay.ToMilliseconds() for each in scheduled] == [0, 100, 200, 250]


def test_only_what_may_pass_is_tried_again() -> None:
    later = fails(8)
    later.retry_delay.FromSeconds(1)
    assert [is_transient(each) for each in (fails(UNAVAILABLE), fails(10), later, fails(8), fails(), Failure())] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_time_that_is_up_ends_the_turn_whatever_is_under_way() -> None:
    driver = Driver(request(), lambda _: None)
    driver.run()
    driver.wait(120)
    assert driver.expire()
    assert driver.turn.failure.reason == error_pb2.ERROR_REASON_TURN_TIMEOUT
    assert "limit of 120 s" in driver.turn.failure.message
