"""Page tokens are bound to their query."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentshell.memory import page_token


@given(st.binary(max_size=50), st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_a_token_gives_its_position_back_to_its_query(query: bytes, position: str) -> None:
    assert page_token.decode(query, page_token.encode(query, position)) == position


@pytest.mark.parametrize("token", ["", "x", "é", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAA", page_token.encode(b"other", "7")])
def test_a_token_of_another_query_or_of_nobody_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="not one of this list"):
        page_token.decode(b"query", token)
