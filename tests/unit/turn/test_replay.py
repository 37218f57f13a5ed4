"""Today's code makes the decisions in recorded histories, and reports where it would not."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.golden.record import HISTORIES, RECORDED, approval, compensation, direct, lines_of
from tests.simulation.world import World
from tests.unit.turn.driver import Driver, noop, request, says

from agentshell.turn.replay import divergences
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t


def history(path: Path) -> list[e.RecordedTurnEvent]:
    return [json_format.Parse(line, e.RecordedTurnEvent()) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("path", sorted(HISTORIES.rglob("*.jsonl")), ids=lambda path: path.stem)
def test_a_golden_history_is_decided_as_it_was(path: Path) -> None:
    assert divergences(history(path)) == []


def test_the_golden_histories_are_those_that_the_engine_makes() -> None:
    for record in RECORDED:
        recorded = (HISTORIES / f"{record.__name__}.jsonl").read_text()
        assert recorded == lines_of(record()), "behaviour has changed; if it was meant: python -m tests.golden.record"


def test_a_decision_that_is_not_todays_is_told_with_what_is_decided_instead() -> None:
    events = direct().events
    events[4].event.step_scheduled.attempt = 2  # It was the first attempt at the second step.
    [first, *_] = divergences(events)
    assert first.recorded == events[4]
    assert [(each.step_scheduled.step_id, each.step_scheduled.attempt) for each in first.decided] == [("T/answer", 1)]


def without_knowledge(event: e.TurnEvent) -> None:
    event.plan_created.plan.steps[0].ClearField("memory")


def without_usage(event: e.TurnEvent) -> None:
    event.turn_completed.ClearField("usage")


def without_cause(event: e.TurnEvent) -> None:
    event.turn_failed.failure.ClearField("cause")


def in_another_order(event: e.TurnEvent) -> None:
    event.step_scheduled.step_id = "T/unbook"


def without_waiting(event: e.TurnEvent) -> None:
    event.turn_completed.SetInParent()


@pytest.mark.parametrize(
    ("record", "index", "change"),
    [
        (direct, 1, without_knowledge),
        (direct, -1, without_usage),
        (compensation, -1, without_cause),
        (compensation, 8, in_another_order),
        (approval, 3, without_waiting),
    ],
)
def test_whatever_was_decided_otherwise_is_found(
    record: Callable[[], Driver], index: int, change: Callable[[e.TurnEvent], None]
) -> None:
    events = record().events
    assert divergences(events) == []
    change(events[index].event)
    assert divergences(events) != []


def test_words_for_people_may_differ() -> None:
    events = compensation().events
    events[-1].event.turn_failed.failure.message = "as it was said a year ago"
    assert divergences(events) == []


def test_what_an_owner_had_not_read_does_not_count_against_it() -> None:
    driver = Driver(request(noop("a"), noop("b", "a")), lambda _: None)
    driver.run()
    driver.settle("a", says("a"))
    seen = t.Turn()
    seen.CopyFrom(driver.turn)
    driver.cancel()
    driver.turn, written = seen, driver.turn
    driver.decide()  # It schedules `b`, unaware of the cancellation.
    driver.turn = written
    driver.decide()
    assert driver.kinds()[-3:] == ["turn_cancel_requested", "step_scheduled b", "turn_cancelled"]
    assert divergences(driver.events) == []


def test_what_changed_nothing_is_passed_over() -> None:
    driver = direct()
    driver.write(e.TurnEvent(step_scheduled=e.StepScheduled(step_id="T/answer", attempt=9)))
    assert divergences(driver.events) == []
    assert divergences([]) == []


@settings(max_examples=150)
@given(st.randoms(use_true_random=False))
def test_whatever_happens_to_one_owner_after_another_is_decided_again_the_same(random: Random) -> None:
    world = World(random, one_owner=True)
    world.run()
    for turn_id in world.requested:
        told = [e.RecordedTurnEvent(event=event) for event in world.log.events if event.turn_id == turn_id]
        assert divergences(told) == []
