"""A group is what its journal says, the same for every reader."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.log import iggy_group
from agentshell.log.iggy_group import Group

PARTITIONS = 4
LEASE = 5.0


def group(*entries: tuple[float, bytes]) -> tuple[Group, list[bool]]:
    folded = Group(PARTITIONS)
    return folded, [folded.apply(offset, entry, at) for offset, (at, entry) in enumerate(entries)]


def shares(folded: Group) -> dict[str, tuple[int, ...]]:
    return {name: member.partitions for name, member in folded.members.items()}


def test_partitions_go_to_who_joins_and_come_back_from_who_leaves() -> None:
    one = (0.0, iggy_group.join("p", "a", LEASE))
    two = (1.0, iggy_group.join("q", "b", LEASE))
    assert shares(group(one)[0]) == {"a": (0, 1, 2, 3)}
    assert shares(group(one, two)[0]) == {"a": (0, 1), "b": (2, 3)}
    assert shares(group(one, two, (2.0, iggy_group.leave("p", ["a"])))[0]) == {"b": (0, 1, 2, 3)}
    folded, effects = group(one, two, (2.0, iggy_group.leave("other", ["a"])))
    assert (effects, folded.generation) == ([True, True, False], 2)


def test_to_join_again_changes_nothing_unless_it_is_another_process() -> None:
    first = (0.0, iggy_group.join("p", "a", LEASE))
    assert group(first, (1.0, iggy_group.join("p", "a", LEASE)))[0].generation == 1
    folded, effects = group(
        first, (1.0, iggy_group.join("q", "a", LEASE)), (2.0, iggy_group.commit("p", "a", 1, {0: 1}))
    )
    assert (folded.generation, folded.committed, effects) == (2, {}, [True, True, False])


def test_a_commit_counts_only_under_the_present_generation_and_in_time() -> None:
    join = (0.0, iggy_group.join("p", "a", LEASE))
    assert group(join, (LEASE, iggy_group.commit("p", "a", 1, {2: 7})))[0].committed == {2: 7}
    for late in (
        ((LEASE + 1, iggy_group.commit("p", "a", 1, {2: 7})),),
        ((1.0, iggy_group.join("q", "b", LEASE)), (2.0, iggy_group.commit("p", "a", 1, {2: 7}))),
        ((1.0, iggy_group.commit("p", "b", 1, {2: 7})),),
    ):
        folded, effects = group(join, *late)
        assert (folded.committed, effects[-1]) == ({}, False)


def test_who_is_silent_is_expelled_by_the_next_entry_of_anybody() -> None:
    folded, _ = group(
        (0.0, iggy_group.join("p", "a", LEASE)),
        (0.0, iggy_group.join("q", "b", LEASE)),
        (LEASE, iggy_group.renew("q", ["b"])),
        (LEASE + 0.1, iggy_group.renew("other", [])),
    )
    assert shares(folded) == {"b": (0, 1, 2, 3)}


def test_all_members_of_a_process_that_has_ended_go_and_no_others() -> None:
    folded, effects = group(
        (0.0, iggy_group.join("p", "a", LEASE)),
        (0.0, iggy_group.join("p", "b", LEASE)),
        (0.0, iggy_group.join("q", "c", LEASE)),
        (1.0, iggy_group.gone("q", ["p"])),
        (1.0, iggy_group.gone("r", ["p"])),
    )
    assert (shares(folded), folded.processes, folded.generation) == ({"c": (0, 1, 2, 3)}, {"q"}, 4)
    assert effects == [True, True, True, True, False]


_NAMES = st.sampled_from("abc")
_ENTRIES = st.one_of(
    st.builds(iggy_group.join, st.sampled_from("pq"), _NAMES, st.just(LEASE)),
    st.builds(iggy_group.leave, st.sampled_from("pq"), st.lists(_NAMES, max_size=2)),
    st.builds(iggy_group.gone, st.just("r"), st.lists(st.sampled_from("pq"), max_size=2)),
    st.builds(iggy_group.renew, st.sampled_from("pq"), st.lists(_NAMES, max_size=2)),
    st.builds(
        iggy_group.commit,
        st.sampled_from("pq"),
        _NAMES,
        st.integers(0, 8),
        st.dictionaries(st.integers(0, PARTITIONS - 1), st.integers(0, 100)),
    ),
)


@settings(max_examples=100)
@given(st.lists(st.tuples(_ENTRIES, st.floats(0, 4)), max_size=30), st.integers(0, 30))
def test_no_partition_is_held_twice_and_a_snapshot_says_what_its_entries_said(
    entries: list[tuple[bytes, float]], cut: int
) -> None:
    whole, at = Group(PARTITIONS), 0.0
    late = Group(PARTITIONS)
    for offset, (entry, pause) in enumerate(entries):
        if offset == cut:
            assert late.restore([entry, iggy_group.snapshot("p", whole)])
        at += pause
        whole.apply(offset, entry, at)
        if offset >= cut:
            late.apply(offset, entry, at)
        held = [partition for share in shares(whole).values() for partition in share]
        assert sorted(held) == (list(range(PARTITIONS)) if whole.members else [])
    if cut < len(entries):
        assert vars(late) == vars(whole)
