"""When a step fails that says so, the steps that succeeded are undone in reverse order."""

from datetime import timedelta

from tests.unit.turn.driver import UNAVAILABLE, Driver, Outcome, fails, noop, request, says

from kfm.turn.v1 import turn_pb2 as t

COMPENSATE, CONTINUE = t.ON_FAILURE_COMPENSATE, t.ON_FAILURE_CONTINUE


def trip(*more: t.Step, **undo: t.OnFailure.ValueType) -> list[t.Step]:
    """Returns a plan that books, pays and ships; shipping fails."""
    return [
        noop("book"),
        noop("pay", "book"),
        noop("ship", "pay", on_failure=COMPENSATE),
        noop("unbook", compensates="book"),
        noop("refund", compensates="pay", **undo),
        *more,
    ]


def without_shipping(step: t.Step) -> Outcome:
    return fails(message="no ship") if step.step_id == "T/ship" else says(step.step_id)


def undone(driver: Driver) -> list[str]:
    return [kind for kind in driver.kinds() if kind.startswith("step_scheduled") and ("un" in kind or "ref" in kind)]


def test_the_last_that_succeeded_is_undone_first_and_then_the_turn_fails() -> None:
    driver = Driver(request(*trip()), without_shipping)
    driver.run()
    assert driver.kinds()[-6:] == [
        "step_failed ship",
        "step_scheduled refund",
        "step_succeeded refund",
        "step_scheduled unbook",
        "step_succeeded unbook",
        "turn_failed",
    ]
    assert driver.turn.failure.message == "step T/ship failed in attempt 1: no ship"


def test_the_order_is_that_of_the_log_whatever_the_workers_clocks_say() -> None:
    driver = Driver(request(*trip()), lambda _: None)
    for name in ("book", "pay"):
        driver.run()
        driver.settle(name, says(name))
        driver.now -= timedelta(hours=1)
    driver.decide()
    driver.settle("ship", fails())
    assert [event.step_scheduled.step_id for event in driver.decide()] == ["T/refund"]


def test_nothing_is_undone_that_never_succeeded_and_nothing_without_need() -> None:
    lost = Driver(request(*trip()), lambda step: fails() if step.step_id == "T/pay" else says(""))
    lost.run()
    assert undone(lost) == [], "paying failed, and says nothing of compensation"
    well = Driver(request(*trip()))
    well.run()
    assert undone(well) == []
    assert well.turn.state == t.TURN_STATE_COMPLETED
    assert well.states()["unbook"] == "SKIPPED"


def test_what_is_under_way_is_waited_for_and_undone_too() -> None:
    driver = Driver(
        request(
            noop("slow"),
            noop("ship", on_failure=COMPENSATE),
            noop("unslow", compensates="slow"),
            t.Step(step_id="ask", approval=t.ApprovalStep(question="?")),
        ),
        lambda _: None,
    )
    driver.run()
    driver.settle("ship", fails())
    assert [event.WhichOneof("event") for event in driver.decide()] == ["step_skipped"], "nobody need answer any more"
    assert driver.states() == {"slow": "SCHEDULED", "ship": "FAILED", "unslow": "UNSPECIFIED", "ask": "SKIPPED"}
    driver.settle("slow", says("slow"))
    driver.decide()
    assert driver.states()["unslow"] == "SCHEDULED"


def test_a_compensation_that_fails_for_good_ends_the_turn_with_its_own_failure() -> None:
    def answer(step: t.Step) -> Outcome:
        return fails(UNAVAILABLE, "no refund") if step.step_id == "T/refund" else without_shipping(step)

    driver = Driver(request(*trip()), answer)
    driver.run()
    assert undone(driver) == ["step_scheduled refund"] * 3
    assert driver.turn.failure.message == "step T/refund failed in attempt 3: no refund"
    patient = Driver(request(*trip(on_failure=CONTINUE)), answer)
    patient.run()
    assert undone(patient) == [*["step_scheduled refund"] * 3, "step_scheduled unbook"]
    assert patient.turn.failure.message == "step T/ship failed in attempt 1: no ship"


def test_a_compensation_that_was_interrupted_is_made_again() -> None:
    driver = Driver(request(*trip()), lambda step: None if step.compensates else without_shipping(step))
    driver.run()
    assert [event.step_scheduled.attempt for event in driver.take_over()] == [2]
    assert driver.settle("refund", says("refunded"))
    driver.decide()
    assert driver.states()["unbook"] == "SCHEDULED"


def test_without_it_the_turn_goes_on_and_with_nothing_said_it_fails_at_once() -> None:
    for policy, states in (
        (CONTINUE, {"a": "FAILED", "b": "SCHEDULED", "c": "SCHEDULED"}),
        (t.ON_FAILURE_UNSPECIFIED, {"a": "FAILED", "b": "SCHEDULED", "c": "SKIPPED"}),
    ):
        driver = Driver(request(noop("a", on_failure=policy), noop("b"), noop("c", "a")), lambda _: None)
        driver.run()
        driver.settle("a", fails())
        driver.decide()
        assert driver.states() == states
