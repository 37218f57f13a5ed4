"""Ids."""

from hypothesis import given
from hypothesis import strategies as st

from agentshell.mesh import ids

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_a_ulid_is_26_characters_and_sorts_by_time() -> None:
    made = [ids.ulid() for _ in range(100)]
    assert len(set(made)) == 100
    assert all(len(name) == 26 and set(name) <= set(CROCKFORD) and name[0] <= "7" for name in made)
    assert [name[:10] for name in made] == sorted(name[:10] for name in made)


def test_the_time_of_a_ulid_is_its_first_ten_characters() -> None:
    milliseconds = sum(CROCKFORD.index(letter) << (5 * (9 - at)) for at, letter in enumerate(ids.ulid()[:10]))
    assert 1_700_000_000_000 < milliseconds < 5_000_000_000_000


@given(st.lists(st.text(min_size=1, max_size=8), max_size=4), st.lists(st.text(min_size=1, max_size=8), max_size=4))
def test_a_digest_is_the_same_for_the_same_parts_alone(one: list[str], other: list[str]) -> None:
    one, other = ([part.replace("\0", "x") for part in parts] for parts in (one, other))
    assert (ids.digest(*one) == ids.digest(*other)) == (one == other)
