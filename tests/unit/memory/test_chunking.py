"""Chunks follow a document's structure, stay within bounds, and lose nothing."""

from __future__ import annotations

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.memory import chunking
from agentshell.memory.chunking import Chunk
from agentshell.memory.documents import markdown, plain
from agentshell.memory.documents.block import Block, Position

LIMIT, OVERLAP = 200, 40

GUIDE = """\
Read this first.

# Install

Needs Python.

## From source

Clone it, then:

```sh
# not a heading

make demo
```

## From a package
# Use
Ask it.

Underlined
==========
Last words.
"""


def test_markdown_is_taken_apart_at_headings_and_titled_by_the_path_to_them() -> None:
    assert list(chunking.chunks(markdown.blocks(GUIDE), LIMIT, OVERLAP)) == [
        Chunk("", "Read this first."),
        Chunk("Install", "Needs Python."),
        Chunk("Install > From source", "Clone it, then:\n\n```sh\n# not a heading\n\nmake demo\n```"),
        Chunk("Install > From a package", "From a package"),
        Chunk("Use", "Ask it."),
        Chunk("Underlined", "Last words."),
    ]


def test_plain_text_knows_no_headings() -> None:
    assert list(chunking.chunks(plain.blocks("# A\n\nb\r\nc\n"), LIMIT, OVERLAP)) == [Chunk("", "# A\n\nb\nc")]


def test_a_paragraph_stays_whole_where_it_fits_and_the_next_chunk_repeats_the_end_of_the_one_before() -> None:
    first, second = "One sentence. " * 10 + "The last one.", "Two. " * 20 + "End."
    chunks = list(chunking.chunks(plain.blocks(f"{first}\n\n{second}"), LIMIT, OVERLAP))
    assert chunks == [
        Chunk("", first),
        Chunk("", f"One sentence. The last one.\n\n{second}", len("One sentence. The last one.")),
    ]


def test_a_block_too_large_for_a_chunk_is_cut_at_lines_then_sentences_then_words_then_anywhere() -> None:
    lines = "\n".join(f"line {number:03}" for number in range(60))
    assert all(
        chunk.text.endswith(tuple("0123456789")) for chunk in chunking.chunks(plain.blocks(lines), LIMIT, OVERLAP)
    )
    assert all(re.match(r"line \d{3}\n", chunk.text) for chunk in chunking.chunks(plain.blocks(lines), LIMIT, OVERLAP))
    sentences = "A short sentence. " * 40
    assert {chunk.text[-1] for chunk in chunking.chunks(plain.blocks(sentences), LIMIT, OVERLAP)} == {"."}
    assert [len(chunk.text) for chunk in chunking.chunks(plain.blocks("x" * 450), LIMIT, 0)] == [198, 198, 54]


def test_a_chunk_says_from_where_to_where_it_goes_and_a_heading_without_text_ends_others() -> None:
    def on(page: int, text: str) -> Block:
        return Block(text, position=Position("page", page))

    blocks = [Block("A", 1), on(1, "a" * 60), on(1, "b" * 60), on(2, "c" * 60), on(4, "d"), Block("", 1), Block("e")]
    assert [(chunk.title, chunk.text[0], chunk.text[-1]) for chunk in chunking.chunks(blocks, 130, 0)] == [
        ("A > page 1", "a", "b"),
        ("A > pages 2–4", "c", "d"),
        ("", "e", "e"),
    ]


LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), max_size=30).map("\n".join)


@given(LINES, st.integers(1, 300), st.integers(0, 400))
@settings(max_examples=200)
def test_plain_chunks_keep_their_bounds_and_lose_no_character(text: str, limit: int, overlap: int) -> None:
    chunks = list(chunking.chunks(plain.blocks(text), limit, overlap))
    assert all(len(chunk.text) <= limit and chunk.text.strip() for chunk in chunks)
    assert all(chunk.repeated_characters <= min(overlap, limit // 2) for chunk in chunks)
    kept = "".join(chunk.text[chunk.repeated_characters :] for chunk in chunks)
    assert "".join(kept.split()) == "".join(text.split())


MARKS = [
    "",
    "",
    "",
    "\n",
    "# ",
    "## ",
    "### ",
    "###### ",
    "####### ",
    "```\n",
    "~~~~\n",
    "===\n",
    "---\n",
    "- ",
    "    ",
]


@given(st.lists(st.tuples(st.sampled_from(MARKS), st.integers(0, 40)), max_size=40), st.integers(60, 300))
@settings(max_examples=200)
def test_markdown_chunks_keep_their_bounds_and_lose_no_word(lines: list[tuple[str, int]], limit: int) -> None:
    words = (f"w{number:05}" for number in itertools.count())
    text = "\n".join(mark + " ".join(itertools.islice(words, count)) for mark, count in lines)
    chunks = list(chunking.chunks(markdown.blocks(text), limit, limit // 5))
    assert all(len(chunk.text) <= limit and len(chunk.title) <= 1024 and chunk.text.strip() for chunk in chunks)
    first_found = dict.fromkeys(word for chunk in chunks for word in re.findall(r"w\d{5}", chunk.title + chunk.text))
    assert list(first_found) == re.findall(r"w\d{5}", text)
