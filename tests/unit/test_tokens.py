"""The token estimate: additive, never zero for a non-empty text, and near the vendors' own counts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell import tokens


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), (" \n", 0), ("Hello, world!", 4), ("internationalization", 4), ("日本語です", 3), ("f(x)", 4)],
)
def test_words_and_marks_are_counted(text: str, count: int) -> None:
    assert tokens.estimate(text) == count


@settings(max_examples=50)
@given(st.text(max_size=50), st.text(max_size=50))
def test_texts_beside_each_other_count_as_much_as_each_alone(a: str, b: str) -> None:
    assert tokens.estimate(f"{a} {b}") == tokens.estimate(a) + tokens.estimate(b)
