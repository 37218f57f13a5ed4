"""The course of a call through failing endpoints, with the test's own clock and random numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.mesh.errors import AgentShellError
from agentshell.provider import backoff
from agentshell.provider.adapters.adapter import Adapter
from agentshell.provider.breaker import Breaker
from agentshell.provider.course import Stage, course
from agentshell.provider.endpoint import Endpoint
from agentshell.provider.routing import Candidate
from agentshell.provider.slots import Slots
from kfm.error.v1.error_pb2 import ErrorReason

MAX_ATTEMPTS, DEADLINE = 3, 100.0
LIMITED, DOWN, KEY, TOO_LONG, FILTERED, OPEN = (
    f"PROVIDER_{name}"
    for name in ("RATE_LIMITED", "UNAVAILABLE", "KEY_INVALID", "CONTEXT_TOO_LONG", "CONTENT_FILTERED", "CIRCUIT_OPEN")
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def failure(reason: str, retry_seconds: float | None = None) -> AgentShellError:
    delay = None if retry_seconds is None else timedelta(seconds=retry_seconds)
    return AgentShellError(ErrorReason.Value(f"ERROR_REASON_{reason}"), reason, retry_delay=delay)


def stages(*endpoints: int) -> list[Stage]:
    """Returns a stage for each number, with that many endpoints: `a#1`, `a#2`, `b#1`, ..."""
    return [Stage(Candidate(name, "m"), [_endpoint(f"{name}#{number + 1}") for number in range(count)])
            for name, count in zip("abc", endpoints, strict=False)]  # fmt: skip


def _endpoint(label: str) -> Endpoint:
    return Endpoint(label, cast("Adapter", None), 1, Breaker(5, 10.0), Slots(label, 1, 0))


def walk(
    taken: Sequence[Stage], fail: Callable[[str], AgentShellError], seconds: float = 0.0, chance: float = 0.5
) -> list[tuple[str, float]]:
    """Returns the endpoints that a call tries and its wait before each; attempts take `seconds` and fail by `fail`."""
    clock = Clock()
    steps: list[tuple[str, float]] = []
    run = course(taken, MAX_ATTEMPTS, DEADLINE, clock, lambda: chance)
    step = next(run)
    while True:
        steps.append((step.endpoint.label, step.wait_seconds))
        clock.now += step.wait_seconds + seconds
        try:
            step = run.send(fail(step.endpoint.label))
        except StopIteration:
            return steps


def test_a_passing_failure_is_tried_again_with_growing_waits() -> None:
    assert walk(stages(1), lambda _: failure(DOWN)) == [("a#1", 0), ("a#1", 0.25), ("a#1", 0.5)]


def test_each_endpoint_is_tried_at_once_before_one_is_tried_again() -> None:
    assert walk(stages(2), lambda _: failure(DOWN)) == [("a#1", 0), ("a#2", 0), ("a#1", 0.25)]


def test_the_next_candidate_comes_when_one_has_failed_often_enough() -> None:
    walked = walk(stages(1, 2), lambda _: failure(DOWN))
    assert [label for label, _ in walked] == ["a#1", "a#1", "a#1", "b#1", "b#2", "b#1"]


def test_a_vendor_that_says_how_long_is_asked_again_then_and_others_before() -> None:
    def fail(label: str) -> AgentShellError:
        return failure(LIMITED, 1.5) if label == "a#1" else failure(DOWN)

    assert walk(stages(2), fail, chance=0.5) == [("a#1", 0), ("a#2", 0), ("a#2", 0.5)]


def test_a_long_wait_is_not_waited_where_another_model_can_be_asked() -> None:
    assert walk(stages(1), lambda _: failure(LIMITED, 20)) == [("a#1", 0), ("a#1", 20), ("a#1", 20)]
    assert walk(stages(1, 1), lambda _: failure(LIMITED, 20))[:2] == [("a#1", 0), ("b#1", 0)]
    assert walk(stages(1), lambda _: failure(LIMITED, 90)) == [("a#1", 0)]


def test_nothing_is_tried_that_would_begin_past_the_deadline() -> None:
    assert walk(stages(1), lambda _: failure(DOWN), seconds=99.8) == [("a#1", 0)]


def test_a_refusal_leads_to_other_endpoints_and_is_no_failed_attempt() -> None:
    def fail(label: str) -> AgentShellError:
        return failure(OPEN) if label == "a#1" else failure(KEY) if label == "a#2" else failure(DOWN)

    walked = walk(stages(3, 1), fail)
    assert [label for label, _ in walked] == ["a#1", "a#2", "a#3", "a#3", "a#3", "b#1", "b#1", "b#1"]


def test_what_one_model_cannot_do_another_may_and_a_filter_has_the_last_word() -> None:
    assert walk(stages(2, 1), lambda _: failure(TOO_LONG)) == [("a#1", 0), ("b#1", 0)]
    assert walk(stages(2, 1), lambda _: failure(FILTERED)) == [("a#1", 0)]


REASONS = st.sampled_from([LIMITED, DOWN, KEY, TOO_LONG, FILTERED, OPEN, "BUDGET_EXHAUSTED"])
COUNTS = st.lists(st.integers(1, 4), min_size=1, max_size=3)
FAILURES = st.lists(st.tuples(REASONS, st.none() | st.floats(0, 120)), min_size=60, max_size=60)


@given(COUNTS, FAILURES, st.floats(0, 1, exclude_max=True), st.floats(0, 9))
@settings(max_examples=150)
def test_however_attempts_fail_they_are_bounded_in_order_and_in_time(
    counts: list[int], failures: list[tuple[str, float | None]], chance: float, seconds: float
) -> None:
    told: list[tuple[str, AgentShellError]] = []

    def fail(label: str) -> AgentShellError:
        told.append((label, failure(*failures[len(told)])))
        return told[-1][1]

    walked = walk(stages(*counts), fail, seconds, chance)

    labels = [label for label, _ in walked]
    assert [label[0] for label in labels] == sorted(label[0] for label in labels)
    failed = Counter(label[0] for label, error in told if backoff.remedy(error.reason) is backoff.Remedy.AGAIN)
    assert all(count <= MAX_ATTEMPTS for count in failed.values())
    for index, (label, error) in enumerate(told[:-1]):
        remedy = backoff.remedy(error.reason)
        assert remedy is not backoff.Remedy.NONE
        if remedy is backoff.Remedy.ELSEWHERE:
            assert label not in labels[index + 1 :]
        if remedy is backoff.Remedy.ANOTHER_MODEL:
            assert labels[index + 1][0] > label[0]
    elapsed = 0.0
    for _, wait in walked:
        assert wait == 0 or elapsed + wait < DEADLINE
        elapsed += wait + seconds
