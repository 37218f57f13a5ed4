"""A turn goes on when its owner is gone, and ends when somebody cancels it."""

from tests.unit.turn.driver import UNAVAILABLE, Driver, fails, noop, request, says

from agentshell.turn.decision import restart
from agentshell.turn.state import apply
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t


def under_way(*steps: t.Step) -> Driver:
    driver = Driver(request(*steps), lambda _: None)
    driver.run()
    return driver


def test_what_was_under_way_runs_again_and_what_was_not_does_not() -> None:
    driver = under_way(noop("a"), noop("b"), noop("c", "b"))
    driver.settle("a", says("a"))
    assert [(each.step_scheduled.step_id, each.step_scheduled.attempt) for each in driver.take_over()] == [("T/b", 2)]
    assert driver.decide() == []


def test_an_interrupted_attempt_is_no_failed_one() -> None:
    driver = under_way(noop("a"))
    for _ in range(5):
        driver.take_over()
    driver.settle("a", fails(UNAVAILABLE))
    [again] = driver.decide()
    assert (again.step_scheduled.attempt, driver.step("a").failure_count) == (7, 1)
    assert again.step_scheduled.start_delay.ToTimedelta().total_seconds() == 0.2


def test_a_failure_of_an_attempt_that_is_past_changes_nothing_but_its_success_counts() -> None:
    driver = under_way(noop("a"))
    driver.take_over()
    late = e.StepFailed(step_id="T/a", attempt=1, failure=fails())
    assert not driver.write(e.TurnEvent(step_failed=late))
    assert driver.write(e.TurnEvent(step_succeeded=e.StepSucceeded(step_id="T/a", attempt=1, result=says("a"))))
    assert not driver.settle("a", says("again"))
    driver.decide()
    assert driver.turn.output == says("a").output


def test_an_attempt_that_has_failed_is_not_begun_again_by_who_does_not_know_of_it() -> None:
    driver = under_way(noop("a"))
    [again] = restart(driver.turn)
    assert driver.settle("a", fails(UNAVAILABLE))
    assert not driver.write(again)
    [after] = driver.decide()
    assert after.step_scheduled.attempt == 2


def test_what_grew_is_not_grown_again() -> None:
    driver = under_way(noop("list"), noop("each", "list", fan_out="[1]"), noop("end", "each"))
    driver.settle("list", says(""))
    [extended, _] = driver.decide()
    assert extended.HasField("plan_extended")
    assert not driver.write(extended)


def test_a_cancelled_turn_ends_whatever_is_under_way() -> None:
    driver = under_way(noop("a"), noop("b", "a"))
    assert driver.cancel()
    assert not driver.cancel()
    driver.decide()
    assert driver.turn.state == t.TURN_STATE_CANCELLED
    assert driver.states() == {"a": "SCHEDULED", "b": "SKIPPED"}
    assert not driver.settle("a", says("too late"))


def test_an_event_of_another_turn_changes_nothing() -> None:
    driver = under_way(noop("a"))
    before = t.Turn()
    before.CopyFrom(driver.turn)
    stranger = driver.events[-1].event
    stranger.turn_id = "other"
    assert not apply(driver.turn, stranger)
    assert driver.turn == before
