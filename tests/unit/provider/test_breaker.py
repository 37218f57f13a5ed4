"""The breaker, transition by transition, and under any sequence of overlapping calls."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.provider.breaker import Breaker, State

FAILURES, OPEN_SECONDS = 3, 10.0


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(FAILURES, OPEN_SECONDS)
    for _ in range(FAILURES):
        breaker.fails(permit(breaker, now), now)
    assert breaker.state is State.OPEN
    return breaker


def permit(breaker: Breaker, now: float) -> int:
    found = breaker.ask(now)
    assert found is not None
    return found


def test_failures_open_it_only_if_no_success_lies_between() -> None:
    breaker = Breaker(FAILURES, OPEN_SECONDS)
    for outcome in ("fails", "fails", "succeeds", "fails", "fails"):
        if outcome == "fails":
            breaker.fails(permit(breaker, 0), 0)
        else:
            breaker.succeeds(permit(breaker, 0))
    assert breaker.state is State.CLOSED

    breaker.fails(permit(breaker, 0), 0)
    assert breaker.state is State.OPEN


def test_a_stream_that_is_cut_after_it_began_counts_as_a_failure() -> None:
    breaker = Breaker(1, OPEN_SECONDS)
    under_way = permit(breaker, 0)
    breaker.answers(under_way)
    breaker.fails(under_way, 0)
    assert breaker.state is State.OPEN


def test_it_refuses_until_its_time_is_up_and_then_lets_one_call_try() -> None:
    breaker = opened()
    assert (breaker.ask(9.9), breaker.refused_seconds(4)) == (None, 6)

    permit(breaker, 10)

    assert breaker.state is State.HALF_OPEN
    assert (breaker.ask(1000), breaker.refused_seconds(1000)) == (None, OPEN_SECONDS)


def test_the_call_that_tries_closes_it_as_soon_as_it_is_answered() -> None:
    breaker = opened()
    trying = permit(breaker, 10)
    breaker.answers(trying)
    assert breaker.state is State.CLOSED

    breaker.fails(trying, 11)
    assert breaker.state is State.CLOSED, "one failure in a row: the count began anew"


def test_the_call_that_tries_opens_it_again_if_it_fails() -> None:
    breaker = opened()
    breaker.fails(permit(breaker, 10), 12)
    assert (breaker.state, breaker.ask(21.9)) == (State.OPEN, None)
    permit(breaker, 22)


def test_a_try_that_is_given_up_leaves_the_next_to_another_call() -> None:
    breaker = opened()
    breaker.is_given_up(permit(breaker, 10), 11)
    assert breaker.state is State.OPEN
    permit(breaker, 11)


def test_what_a_call_from_before_it_opened_reports_changes_nothing() -> None:
    breaker = Breaker(1, OPEN_SECONDS)
    old = [permit(breaker, 0) for _ in range(5)]
    breaker.fails(old.pop(), 0)
    for now, state in ((5.0, State.OPEN), (10.0, State.HALF_OPEN)):
        if state is State.HALF_OPEN:
            permit(breaker, now)
        breaker.answers(old[0])
        breaker.succeeds(old[0])
        breaker.fails(old[1], now)
        breaker.is_given_up(old[2], now)
        assert breaker.state is state


REPORTS = st.sampled_from(["answers", "succeeds", "fails", "is_given_up"])
MOVES = st.lists(st.tuples(st.sampled_from(["ask", "report", "wait"]), REPORTS, st.integers(0, 8)), max_size=60)


@given(MOVES)
@settings(max_examples=200)
def test_any_calls_find_it_closed_or_wait_or_are_the_only_one_to_try(moves: list[tuple[str, str, int]]) -> None:
    breaker, now = Breaker(FAILURES, OPEN_SECONDS), 0.0
    under_way: list[tuple[int, State]] = []
    for kind, report, number in moves:
        before = breaker.state
        if kind == "wait":
            now += number
        elif kind == "ask":
            refused = breaker.refused_seconds(now)
            found = breaker.ask(now)
            assert (found is None) == (refused > 0)
            assert refused <= OPEN_SECONDS
            if found is not None:
                assert breaker.state is not State.OPEN
                assert before is not State.HALF_OPEN
                under_way.append((found, breaker.state))
        elif under_way:
            reporting = under_way[number % len(under_way)]
            if report != "answers":
                under_way.remove(reporting)
            if report in ("fails", "is_given_up"):
                getattr(breaker, report)(reporting[0], now)
            else:
                getattr(breaker, report)(reporting[0])
            if before is State.OPEN:
                assert breaker.state is State.OPEN, "nothing but time and a try closes it"
        trying = [each for each in under_way if each[1] is State.HALF_OPEN]
        if breaker.state is State.HALF_OPEN:
            assert trying, "somebody is under way who will settle it"
    now += OPEN_SECONDS  # In any case: once the calls under way have ended, a later one may try.
    for each in under_way:
        breaker.is_given_up(each[0], now)
    assert breaker.ask(now) is not None
