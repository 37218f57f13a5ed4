"""Where a reader resumes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentshell.gateway.cursor import Cursor, decode

_OFFSETS = st.integers(0, 2**63 - 1)


@given(_OFFSETS, _OFFSETS)
def test_a_cursor_comes_back_as_it_was(turns: int, outputs: int) -> None:
    cursor = Cursor("01ARZ3NDEKTSV4RRFFQ69G5FAV", turns, outputs)
    assert decode(cursor.encode(), cursor.turn_id) == cursor


@given(st.text(max_size=60))
def test_what_is_no_cursor_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(ValueError, match=r"cursor"):
        decode(text, "T")


def test_a_cursor_of_another_turn_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to turn A, not to B"):
        decode(Cursor("A", 1, 2).encode(), "B")


def test_a_cursor_with_a_negative_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="not made by this service"):
        decode(Cursor("A", -1, 2).encode(), "A")
