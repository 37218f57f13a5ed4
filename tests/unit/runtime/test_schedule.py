"""Which turns may begin."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.runtime.schedule import Schedule


def test_turns_of_one_session_run_one_after_another() -> None:
    schedule = Schedule(10)
    for turn_id in ("a", "b"):
        schedule.add(turn_id, "session")
    assert schedule.begin("a")
    assert not schedule.begin("b")
    assert schedule.remove("a") == ["b"]
    assert schedule.begin("b")


def test_turns_over_the_limit_wait_for_room() -> None:
    schedule = Schedule(1)
    schedule.add("a", "s1")
    schedule.add("b", "s2")
    assert schedule.begin("a")
    assert not schedule.begin("b")
    assert schedule.remove("a") == ["b"]


def test_a_turn_that_is_gone_does_not_use_up_the_room_it_waited_for() -> None:
    schedule = Schedule(1)
    for turn_id in ("a", "b", "c"):
        schedule.add(turn_id, turn_id)
    assert schedule.begin("a")
    assert not schedule.begin("b")
    assert not schedule.begin("c")
    assert schedule.remove("b") == ["c"], "whoever waits is asked again"
    assert not schedule.begin("c")
    assert schedule.remove("a") == ["c"]
    assert schedule.begin("c")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 3), st.data())
def test_every_turn_begins_in_the_end_in_its_sessions_order(
    sessions: list[int], most: int, data: st.DataObject
) -> None:
    schedule, begun = Schedule(most), list[int]()
    for turn, session in enumerate(sessions):
        schedule.add(str(turn), str(session))
    asked = [str(turn) for turn in range(len(sessions))]
    running: list[str] = []
    while asked or running:
        for turn_id in asked:
            if schedule.begin(turn_id):
                running.append(turn_id)
                begun.append(int(turn_id))
        assert len(running) <= most
        over = data.draw(st.sampled_from(running))
        running.remove(over)
        asked = schedule.remove(over)
    assert sorted(begun) == list(range(len(sessions)))
    for session in set(sessions):
        turns = [turn for turn in begun if sessions[turn] == session]
        assert turns == sorted(turns)
