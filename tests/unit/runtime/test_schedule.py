"""Which turns may start."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.runtime.schedule import Schedule
from kfm.turn.v1.turn_pb2 import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL


def test_turns_of_one_session_run_one_after_another() -> None:
    schedule = Schedule(10)
    for turn_id in ("a", "b"):
        schedule.add(turn_id, "acme", "session")
    assert schedule.begin() == ["a"]
    assert schedule.begin() == []
    schedule.remove("a")
    assert schedule.begin() == ["b"]


def test_turns_over_the_limit_wait_for_room() -> None:
    schedule = Schedule(1)
    for turn_id in ("a", "b", "c"):
        schedule.add(turn_id, "acme", turn_id)
    assert schedule.begin() == ["a"]
    schedule.remove("b")
    assert schedule.begin() == []
    schedule.remove("a")
    assert schedule.begin() == ["c"], "a turn that is gone does not use up the room it waited for"


def test_a_turn_that_another_waits_for_begins_though_all_the_room_is_taken() -> None:
    schedule = Schedule(1)
    for turn_id in ("above", "next"):
        schedule.add(turn_id, "acme", turn_id)
    assert schedule.begin() == ["above"]
    schedule.add("below", "acme", "its own", is_awaited=True)
    assert schedule.begin() == ["below"]
    schedule.remove("above")
    assert schedule.begin() == [], "it takes the room that it was not asked to wait for"
    schedule.remove("below")
    assert schedule.begin() == ["next"]


def test_the_tenant_with_the_fewest_turns_under_way_is_next() -> None:
    schedule = Schedule(4)
    for at in range(10):
        schedule.add(f"crowd-{at}", "crowd", f"s{at}")
    schedule.add("small-0", "small", "s")
    assert Counter(turn_id.partition("-")[0] for turn_id in schedule.begin()) == {"crowd": 3, "small": 1}


def test_the_higher_priority_is_next_then_the_older_turn() -> None:
    schedule = Schedule(1)
    for turn_id, priority in (
        ("low", PRIORITY_LOW),
        ("first", 0),
        ("second", PRIORITY_NORMAL),
        ("high", PRIORITY_HIGH),
    ):
        schedule.add(turn_id, "acme", turn_id, priority)  # pyright: ignore[reportArgumentType] - 0 is no priority
    order: list[str] = []
    while begun := schedule.begin():
        order += begun
        schedule.remove(*begun)
    assert order == ["high", "first", "second", "low"]


def test_a_turn_that_goes_on_needs_no_room() -> None:
    schedule = Schedule(1)
    schedule.add("a", "acme", "session")
    assert schedule.begin() == ["a"]
    schedule.add("b", "acme", "session")
    schedule.resume("b")
    assert schedule.has_begun("b")
    assert schedule.active_count == 2
    schedule.remove("a")
    schedule.remove("b")
    assert schedule.active_count == 0


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30), st.integers(1, 3), st.data())
def test_every_turn_begins_in_the_end_in_its_sessions_order(
    turns: list[tuple[int, int]], most: int, data: st.DataObject
) -> None:
    schedule, begun = Schedule(most), list[int]()
    for turn, (session, tenant) in enumerate(turns):
        schedule.add(str(turn), str(tenant), f"{tenant}/{session}")
    running: list[str] = []
    while new := schedule.begin() or running:
        fresh = [turn_id for turn_id in new if turn_id not in running]
        running += fresh
        begun += map(int, fresh)
        assert len(running) == schedule.active_count <= most
        over = data.draw(st.sampled_from(running))
        running.remove(over)
        schedule.remove(over)
    assert sorted(begun) == list(range(len(turns)))
    for each in set(turns):
        order = [turn for turn in begun if turns[turn] == each]
        assert order == sorted(order)
