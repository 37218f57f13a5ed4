"""Markdown is split into blocks that can be quoted as they are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.provider import markdown

DOCUMENT = """\
# Install
Run it in a shell. Then go
on with this:

```
make demo

# no heading
```
- one,
  still one
- two

| a | b |
|---|---|
| 1 | 2 |
## More
The end.
"""


def test_a_document_becomes_paragraphs_lists_tables_and_code_with_what_introduces_them() -> None:
    assert markdown.groups(DOCUMENT) == [
        ["# Install", "Run it in a shell. Then go\non with this:", "```\nmake demo\n\n# no heading\n```"],
        ["- one,\n  still one\n- two"],
        ["| a | b |\n|---|---|\n| 1 | 2 |"],
        ["## More", "The end."],
    ]


def test_code_that_the_text_cuts_off_is_closed() -> None:
    assert markdown.groups("~~~~sh\nmake") == [["~~~~sh\nmake\n~~~~"]]


@pytest.mark.parametrize(
    ("block", "is_prose"), [("Words.", True), ("- item", True), ("```\ncode\n```", False), ("| a |\n|---|", False)]
)
def test_words_can_be_added_to_prose_and_lists_alone(block: str, is_prose: bool) -> None:
    assert markdown.is_prose(block) is is_prose


@settings(max_examples=100)
@given(st.text(alphabet="ab.:#!`|-1 \n", max_size=200))
def test_no_line_is_lost_or_changed(text: str) -> None:
    kept = [line for group in markdown.groups(text) for block in group for line in block.splitlines() if line.strip()]
    written = [line for line in text.splitlines() if line.strip()]

    assert kept[: len(written)] == written
    assert all(set(line) == {"`"} for line in kept[len(written) :])
