"""Markdown is cut into pieces that can be quoted alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.provider import markdown
from agentshell.provider.markdown import Kind, Unit

DOCUMENT = """\
# Install

Run it, e.g. In a shell. It is **fast.** See "it." Then go
on with version 3.11 of it:

```
make demo

make test
```

## Parts
- one,
  still one
- two
1. First.
2. Second.

| a | b |
|---|---|
| 1 | 2 |
"""


def test_a_document_becomes_sentences_items_steps_tables_and_code() -> None:
    assert markdown.units(DOCUMENT) == [
        Unit(Kind.SENTENCE, "Run it, e.g. In a shell.", 1, "Install"),
        Unit(Kind.SENTENCE, "It is **fast.**", 1, "Install"),
        Unit(Kind.SENTENCE, 'See "it."', 1, "Install"),
        Unit(Kind.SENTENCE, "Then go on with version 3.11 of it:", 1, "Install"),
        Unit(Kind.CODE, "```\nmake demo\n\nmake test\n```", 2, "Install"),
        Unit(Kind.ITEM, "- one, still one", 4, "Parts"),
        Unit(Kind.ITEM, "- two", 4, "Parts"),
        Unit(Kind.STEPS, "1. First.\n2. Second.", 5, "Parts"),
        Unit(Kind.TABLE, "| a | b |\n|---|---|\n| 1 | 2 |", 6, "Parts"),
    ]


def test_code_that_the_text_cuts_off_is_closed() -> None:
    assert markdown.units("```sh\nmake") == [Unit(Kind.CODE, "```sh\nmake\n```", 0, "")]


@settings(max_examples=100)
@given(st.text(alphabet="ab.!`|-1 \n", max_size=200))
def test_no_word_is_lost(text: str) -> None:
    kept = "".join(unit.text for unit in markdown.units(text))

    assert [c for c in text if c in "ab"] == [c for c in kept if c in "ab"]
