"""A turn waits for somebody at no cost, for as long as it takes."""

from datetime import timedelta

from tests.golden.record import question
from tests.unit.turn.driver import Driver, noop, request, says

from agentshell.content import text_of
from agentshell.turn.decision import end_nanoseconds, input_end_times
from kfm.error.v1 import error_pb2
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

DAY_SECONDS = 86_400


def asking(*steps: t.Step) -> Driver:
    driver = Driver(request(*(steps or (question("may-i"), noop("go", "may-i")))))
    driver.run()
    return driver


def test_a_turn_waits_when_nothing_else_is_to_be_done() -> None:
    driver = asking(question("may-i"), noop("other"))
    assert driver.kinds()[-2:] == ["step_succeeded other", "turn_waiting"]
    assert driver.turn.state == t.TURN_STATE_WAITING
    assert driver.decide() == []


def test_the_answer_is_the_output_of_the_step_and_the_turn_goes_on() -> None:
    driver = asking()
    assert driver.provide("may-i", "yes")
    assert driver.run().state == t.TURN_STATE_COMPLETED
    assert text_of(driver.step("may-i").result.output) == "yes"
    assert not driver.provide("may-i", "no"), "it was answered"


def test_the_clock_of_the_turn_stands_still_while_it_waits() -> None:
    driver = asking()
    before = end_nanoseconds(driver.turn)
    driver.wait(DAY_SECONDS)
    driver.provide("may-i", "yes")
    waited = driver.turn.waited_duration.ToTimedelta()
    assert timedelta(days=1) <= waited < timedelta(days=1, seconds=1)
    assert end_nanoseconds(driver.turn) - before == driver.turn.waited_duration.ToNanoseconds()
    assert not driver.turn.HasField("wait_start_time")


def test_nobody_who_answers_in_time_fails_the_step() -> None:
    driver = asking(question("may-i", days=2), noop("go", "may-i"))
    assert list(input_end_times(driver.turn)) == ["T/may-i"]
    driver.wait(2 * DAY_SECONDS - 1)
    assert driver.turn.state == t.TURN_STATE_WAITING
    driver.wait(2)
    assert driver.run().state == t.TURN_STATE_FAILED
    assert driver.turn.failure.reason == error_pb2.ERROR_REASON_INPUT_EXPIRED
    assert not driver.provide("may-i", "yes")


def test_of_two_questions_one_answer_leaves_the_turn_waiting_for_the_other() -> None:
    driver = asking(question("a"), question("b", days=1), noop("end", "a", "b"))
    driver.provide("a", "yes")
    driver.run()
    assert driver.turn.state == t.TURN_STATE_WAITING
    assert driver.kinds()[-2:] == ["input_provided a", "turn_waiting"]
    driver.wait(DAY_SECONDS + 1)
    driver.run()
    assert driver.states() == {"a": "SUCCEEDED", "b": "FAILED", "end": "SKIPPED"}


def test_a_turn_that_waits_can_be_cancelled() -> None:
    driver = asking()
    driver.cancel()
    assert driver.run().state == t.TURN_STATE_CANCELLED
    assert not driver.provide("may-i", "yes")


def test_an_answer_that_came_before_the_turn_said_that_it_waits_is_not_forgotten() -> None:
    driver = asking(question("may-i"), noop("go", "may-i"))
    waiting = driver.events.pop().event
    again = t.Turn()
    driver.turn = again
    history, driver.events = driver.events, []
    for recorded in history:
        assert driver.write(recorded.event)
    driver.provide("may-i", "yes")
    assert not driver.write(waiting), "it waits for nothing any more"
    assert driver.run().state == t.TURN_STATE_COMPLETED


def test_only_who_waits_can_be_answered() -> None:
    driver = asking()
    assert not driver.provide("go", "yes")
    other = Driver(request(noop("a")), lambda _: None)
    other.run()
    assert not other.provide("a", "no step that is under way takes an answer")
    assert not driver.write(e.TurnEvent(step_succeeded=e.StepSucceeded(step_id="T/go", attempt=1, result=says("x"))))


def test_a_new_owner_does_not_ask_again() -> None:
    driver = asking()
    assert driver.take_over() == []
    driver.cancel()
    assert driver.take_over() == []


def test_a_new_owner_begins_nothing_in_a_turn_that_is_being_cancelled() -> None:
    driver = Driver(request(noop("a")), lambda _: None)
    driver.run()
    driver.cancel()
    assert driver.take_over() == []
