"""Which steps begin, and which are no longer needed."""

import pytest
from tests.unit.turn.driver import Driver, asks, noop, request, says

from kfm.turn.v1 import turn_pb2 as t

ANY, TWO = t.Join(any=t.JoinAny()), t.Join(quorum=t.JoinQuorum(count=2))
CONTINUE = t.ON_FAILURE_CONTINUE


def waiting(*steps: t.Step) -> Driver:
    """Begins a turn whose steps the test answers."""
    driver = Driver(request(*steps), lambda _: None)
    driver.run()
    return driver


@pytest.mark.parametrize(("said", "taken", "left"), [("yes", "do", "leave"), ("no", "leave", "do")])
def test_a_branch_is_taken_by_what_a_step_said(said: str, taken: str, left: str) -> None:
    steps = [
        noop("ask"),
        noop("do", "ask", condition="outputs.ask.text == 'yes'"),
        noop("leave", "ask", condition="outputs.ask.text != 'yes'"),
        noop("after-do", "do"),
        noop("either", "do", "leave", join=ANY),
    ]
    driver = Driver(request(*steps), lambda step: says(said if step.step_id == "T/ask" else step.step_id))
    driver.run()
    after = "SUCCEEDED" if taken == "do" else "SKIPPED"
    assert driver.states() == {
        "ask": "SUCCEEDED",
        taken: "SUCCEEDED",
        left: "SKIPPED",
        "after-do": after,
        "either": "SUCCEEDED",
    }
    assert driver.turn.state == t.TURN_STATE_COMPLETED


def test_what_depends_on_a_skipped_step_is_skipped_and_the_turn_is_over() -> None:
    driver = Driver(request(noop("a", condition="false"), noop("b", "a"), noop("c", "b"), noop("d", "a", join=ANY)))
    driver.run()
    assert set(driver.states().values()) == {"SKIPPED"}
    assert driver.turn.state == t.TURN_STATE_COMPLETED
    assert not driver.turn.output.parts


def test_the_first_that_succeeds_is_enough_and_the_losers_are_ended() -> None:
    driver = waiting(noop("a"), noop("b"), noop("x", "a", "b", join=ANY))
    driver.settle("b", says("b"))
    assert [event.WhichOneof("event") for event in driver.decide()] == ["step_scheduled", "step_skipped"]
    assert driver.states() == {"a": "SKIPPED", "b": "SUCCEEDED", "x": "SCHEDULED"}
    assert not driver.settle("a", says("too late"))


def test_a_loser_that_somebody_else_waits_for_goes_on() -> None:
    driver = waiting(noop("a"), noop("b"), noop("x", "a", "b", join=ANY), noop("y", "a"))
    driver.settle("b", says("b"))
    driver.decide()
    assert driver.states() == {"a": "SCHEDULED", "b": "SUCCEEDED", "x": "SCHEDULED", "y": "UNSPECIFIED"}


def test_all_that_only_led_to_a_loser_is_ended_too() -> None:
    slow = t.Step(step_id="slow", model=t.ModelStep())
    driver = waiting(noop("b"), slow, noop("then", "slow"), noop("x", "then", "b", join=ANY))
    driver.settle("slow", asks("clock"))
    driver.decide()
    driver.settle("b", says("b"))
    driver.decide()
    assert driver.states() == {
        "b": "SUCCEEDED",
        "slow": "SUCCEEDED",
        "slow#1.0": "SKIPPED",
        "slow#2": "SKIPPED",
        "then": "SKIPPED",
        "x": "SCHEDULED",
    }


def test_a_quorum_waits_for_so_many_and_is_skipped_when_they_can_be_no_more() -> None:
    steps = [noop("a", on_failure=CONTINUE), noop("b", on_failure=CONTINUE), noop("c", on_failure=CONTINUE)]
    driver = waiting(*steps, noop("x", "a", "b", "c", join=TWO))
    driver.settle("a", says("a"))
    assert driver.decide() == []
    driver.settle("b", says("b"))
    driver.decide()
    assert driver.states() == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "SKIPPED", "x": "SCHEDULED"}

    poor = Driver(request(*steps, noop("x", "a", "b", "c", join=TWO)), lambda _: None)
    poor.run()
    for name in ("a", "b"):
        step = poor.step(name)
        step.state, step.failure.code = t.STEP_STATE_FAILED, 3
    poor.decide()
    assert poor.states() == {"a": "FAILED", "b": "FAILED", "c": "SCHEDULED", "x": "SKIPPED"}


def test_a_quorum_counts_the_steps_of_a_fan_out_only_when_they_are_known() -> None:
    driver = waiting(noop("list"), noop("each", "list", fan_out="[1, 2, 3]"), noop("x", "each", join=TWO))
    assert driver.states()["x"] == "UNSPECIFIED"
    driver.settle("list", says(""))
    driver.decide()
    driver.settle("each#2", says("c"))
    driver.settle("each#0", says("a"))
    driver.decide()
    assert driver.states() == {
        "list": "SUCCEEDED",
        "each": "EXPANDED",
        "each#0": "SUCCEEDED",
        "each#1": "SKIPPED",
        "each#2": "SUCCEEDED",
        "x": "SCHEDULED",
    }


def test_a_plan_of_a_thousand_steps_in_a_row_or_side_by_side_is_decided_about() -> None:
    chain = [noop("s0"), *(noop(f"s{i}", f"s{i - 1}", join=ANY) for i in range(1, 1000))]
    driver = Driver(request(*chain, limits=t.TurnLimits(max_steps=1000)), lambda _: None)
    driver.run()
    assert driver.states()["s0"] == "SCHEDULED"
    flat = Driver(request(*(noop(f"s{i}") for i in range(1000)), limits=t.TurnLimits(max_steps=1000)), lambda _: None)
    flat.run()
    assert set(flat.states().values()) == {"SCHEDULED"}
