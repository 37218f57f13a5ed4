"""What a reader of a turn sees."""

from typing import Any

from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.turn.merge import Merge
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t


def event(**payload: Any) -> e.TurnEvent:
    return e.TurnEvent(turn_id="T", **payload)


def delta(run_id: str, index: int, *texts: str, attempt: int = 1, turn_id: str = "T") -> e.OutputDelta:
    return e.OutputDelta(turn_id=turn_id, step_id="T/a", attempt=attempt, run_id=run_id, index=index, texts=texts)


def scheduled(attempt: int, **delay: Duration) -> e.TurnEvent:
    return event(step_scheduled=e.StepScheduled(step_id="T/a", attempt=attempt, **delay))


def reading() -> Merge:
    merge = Merge("T")
    assert merge.sees_event(event(turn_requested=e.TurnRequested()))
    plan = t.Plan(steps=[t.Step(step_id="T/a", model=t.ModelStep())])
    assert merge.sees_event(event(plan_created=e.PlanCreated(plan=plan)))
    assert merge.sees_event(scheduled(1))
    return merge


def test_text_is_seen_once_and_in_order() -> None:
    merge = reading()
    assert merge.sees_delta(delta("R", 0, "a", "b"))
    assert not merge.sees_delta(delta("R", 0, "a", "b"))
    assert not merge.sees_delta(delta("R", 3, "d")), "a hole is not shown"
    assert merge.sees_delta(delta("R", 2, "c"))


def test_a_new_run_makes_the_one_before_void() -> None:
    merge = reading()
    assert merge.sees_delta(delta("R1", 0, "a"))
    assert merge.sees_delta(delta("R2", 0, "A"))
    assert not merge.sees_delta(delta("R1", 1, "b")), "the dead run speaks no more"
    assert merge.sees_delta(delta("R2", 1, "B"))


def test_text_of_an_attempt_waits_for_its_beginning() -> None:
    merge = reading()
    second = delta("R2", 0, "A", attempt=2)
    assert merge.awaits(second)
    assert merge.sees_event(event(step_failed=e.StepFailed(step_id="T/a", attempt=1)))
    assert merge.awaits(second)
    assert merge.sees_event(scheduled(2, start_delay=Duration(seconds=1)))
    assert not merge.awaits(second)
    assert merge.sees_delta(second)


def test_nobody_waits_for_the_beginning_of_an_attempt_that_did_not_count() -> None:
    merge = reading()
    assert merge.sees_event(event(step_failed=e.StepFailed(step_id="T/a", attempt=1)))
    assert not merge.sees_event(scheduled(2)), "by a new owner that did not know of the failure"
    assert not merge.awaits(delta("R2", 0, "A", attempt=2))
    assert not merge.sees_delta(delta("R2", 0, "A", attempt=2))


def test_text_after_the_end_of_its_step_or_of_another_turn_is_not_seen() -> None:
    merge = reading()
    assert not merge.sees_delta(delta("R", 0, "a", turn_id="other"))
    assert not merge.awaits(delta("R", 0, "a", turn_id="other"))
    assert merge.sees_event(event(step_succeeded=e.StepSucceeded(step_id="T/a", attempt=1)))
    assert not merge.sees_delta(delta("R", 0, "a"))
    assert not merge.awaits(delta("R", 0, "a"))


def test_an_event_is_seen_once_and_the_last_one_ends_the_turn() -> None:
    merge = reading()
    assert not merge.sees_event(scheduled(1))
    assert merge.sees_event(event(turn_completed=e.TurnCompleted()))
    assert merge.is_over
    assert not merge.sees_event(event(turn_failed=e.TurnFailed()))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["R1", "R2", "R3"]), st.integers(0, 4)), max_size=40))
def test_whatever_arrives_each_run_reads_without_hole_or_repetition(arrivals: list[tuple[str, int]]) -> None:
    merge = reading()
    seen: dict[str, list[int]] = {}
    for run_id, index in arrivals:
        if merge.sees_delta(delta(run_id, index, "x")):
            seen.setdefault(run_id, []).append(index)
    for indexes in seen.values():
        assert indexes == list(range(len(indexes)))
