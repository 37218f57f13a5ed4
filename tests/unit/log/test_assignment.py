from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentshell.log.assignment import assign


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Draws a number of partitions, and members with disjoint sets of them."""
    partitions = draw(st.integers(1, 12))
    members = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
    owners = draw(st.lists(st.sampled_from([*members, None]), min_size=partitions, max_size=partitions))
    held = {member: tuple(p for p, owner in enumerate(owners) if owner == member) for member in members}
    return partitions, held


@given(groups())
def test_each_partition_has_one_member_and_shares_differ_by_one_at_the_most(
    group: tuple[int, dict[str, tuple[int, ...]]],
) -> None:
    partitions, held = group
    shares = assign(partitions, held)
    assert shares.keys() == held.keys()
    assert sorted(p for share in shares.values() for p in share) == list(range(partitions))
    sizes = [len(share) for share in shares.values()]
    assert max(sizes) - min(sizes) <= 1


@given(groups())
def test_a_member_gives_up_only_what_is_over_its_share(group: tuple[int, dict[str, tuple[int, ...]]]) -> None:
    partitions, held = group
    shares = assign(partitions, held)
    for member, share in shares.items():
        assert len(set(held[member]) - set(share)) == max(0, len(held[member]) - len(share))
    assert assign(partitions, shares) == shares


def test_a_group_without_members_has_no_shares() -> None:
    assert assign(4, {}) == {}
