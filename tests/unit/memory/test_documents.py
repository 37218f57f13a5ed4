"""Documents of each format become chunks that name their place; unreadable ones are refused by name."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.documents import docx, paragraph, pdf

from agentshell.memory import chunking
from agentshell.memory.documents import formats, reading
from agentshell.memory.documents.block import MalformedDocument
from agentshell.memory.documents.formats import MEDIA_TYPES

LIMIT = 200
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def chunks(media_type: str, content: bytes | str, limit: int = LIMIT) -> list[tuple[str, str]]:
    """Returns each chunk's title and text."""
    raw = content.encode() if isinstance(content, str) else content
    blocks = formats.blocks(MEDIA_TYPES[media_type], raw, limit)
    return [(chunk.title, chunk.text) for chunk in chunking.chunks(blocks, limit, 0)]


def refused(media_type: str, content: bytes | str) -> str:
    with pytest.raises(MalformedDocument) as error:
        chunks(media_type, content)
    return str(error.value)


def test_html_is_what_a_browser_shows_under_its_headings() -> None:
    assert chunks(
        "text/html",
        "<title>No</title><h1>Tea &amp;  more</h1>Hot <b>and</b>\nsweet<script>bad()</script><p>Drink<br>it"
        "<ul><li>green<li>black</ul><h2>Prices</h2><table><tr><th>Kind<th>Euro<tr><td>green<td>2</table>"
        "<h1>Code</h1><pre>if x:\n    y</pre>",
    ) == [
        ("Tea & more", "Hot and sweet\n\nDrink\nit\n\ngreen\n\nblack"),
        ("Tea & more > Prices", "Kind | Euro\n\ngreen | 2"),
        ("Code", "if x:\n    y"),
    ]


def test_a_pdf_says_its_pages_and_the_headings_of_its_outline() -> None:
    assert chunks("application/pdf", pdf(["# Tea", "Hot."], ["Still tea.", "# Coffee", "Black."])) == [
        ("Tea > pages 1–2", "Hot.\n\nStill tea."),
        ("Coffee > page 2", "Black."),
    ]


def test_a_docx_has_headings_by_their_styles_in_any_language_and_rows_of_tables() -> None:
    cell = "<w:tc>{}</w:tc>"
    row = f"<w:tr>{cell.format(paragraph('green'))}{cell.format(paragraph('2'))}</w:tr>"
    body = paragraph("Thé", "Titre1") + paragraph("Chaud.") + paragraph("Prix", "Plan2") + f"<w:tbl>{row}</w:tbl>"
    assert chunks(DOCX, docx(body)) == [("Thé", "Chaud."), ("Thé > Prix", "green | 2")]


def test_rows_say_what_their_columns_are_called_and_which_rows_they_are() -> None:
    assert chunks("text/csv", 'name;note\nAnn;"likes\ntea"\n\nBob;\n', 40) == [
        ("rows 2–4", "name: Ann\nnote: likes\ntea\n\nname: Bob"),
    ]
    assert chunks("text/tab-separated-values", "a\tb\n1\t2\n") == [("row 2", "a: 1\nb: 2")]
    assert chunks("text/csv", "a,b\n") == [("row 1", "a, b")]


def test_json_stays_together_where_it_fits_and_says_its_path() -> None:
    users = [{"name": f"u{number}", "tags": ["a", "b"]} for number in range(5)]
    document = json.dumps({"users": users, "n": 1.5, "odd key": {"x": None}, "empty": []})
    user = [f"[{number}].name: u{number}\n[{number}].tags[0]: a\n[{number}].tags[1]: b" for number in range(5)]
    assert chunks("application/json", document, 90) == [
        ("$.users > items 0–1", f"{user[0]}\n\n{user[1]}"),
        ("$.users > items 2–3", f"{user[2]}\n\n{user[3]}"),
        ("$.users > item 4", user[4]),
        ("$", 'n: 1.5\n\n["odd key"].x: null\n\nempty: []'),
    ]
    assert chunks("application/json", '"\\ud800 and \\u0000"') == [("$", "? and \ufffd")]


def test_source_code_is_taken_apart_at_its_definitions_with_what_stands_right_above_them() -> None:
    python = (
        "import os\n\n\n@final\nclass A:\n    x = 1\n\n    async def go(self):\n        pass\n\n"
        "LIMIT = 3\n\ndef f():\n    pass\n"
    )
    assert chunks("text/x-python", python) == [
        ("", "import os"),
        ("class A", "@final\nclass A:\n    x = 1"),
        ("class A > def go", "    async def go(self):\n        pass"),
        ("", "LIMIT = 3"),
        ("def f", "def f():\n    pass"),
    ]
    go = "package a\n\n// Adds.\nfunc (s *Set) Add(x int) {\n\ts.n++\n}\n\ntype Set struct {\n\tn int\n}\n"
    assert [title for title, _ in chunks("text/x-go", go)] == ["", "func (s *Set) Add", "type Set struct"]
    rust = "pub(crate) struct P;\n\nimpl Q for P {\n    pub fn new() -> P {\n        P\n    }\n}\n"
    assert [title for title, _ in chunks("text/x-rust", rust)] == ["struct P", "impl Q for P", "impl Q for P > fn new"]


def _zipped(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr(name, content)
    return made.getvalue()


ENTITIES = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><w:document xmlns:w="x">&b;</w:document>'


@pytest.mark.parametrize(
    ("media_type", "content", "words"),
    [
        ("text/plain", b"tea \xff", "is not UTF-8 at byte 4"),
        ("text/html", "a\0", "has a NUL at character 1"),
        ("text/html", "<b>" * 1000, "has elements nested more than 512 deep"),
        ("text/csv", 'a,b\n"x', "is not CSV at line 2"),
        ("text/csv", "a\n" + "x" * 200_000, "is not CSV at line 2: field larger than field limit"),
        ("application/json", "{", "is not JSON: Expecting property name"),
        ("application/json", "[" * 100_000, "is nested more than 64 deep"),
        ("application/json", "[" * 66 + "]" * 66, "is nested more than 64 deep"),
        ("application/json", "[1" + ",1" * 1_000_000 + "]", "has more than 1,000,000 values"),
        ("application/json", "1" * 10_000 + "e", "is not JSON"),
        ("application/pdf", b"no", "cannot be read as PDF"),
        (DOCX, b"no", "cannot be read as DOCX: File is not a zip file"),
        (DOCX, _zipped("x", b""), "is not a DOCX: it has no word/document.xml"),
        (DOCX, _zipped("word/document.xml", b"<a>"), "cannot be read as DOCX"),
        (DOCX, _zipped("word/document.xml", b" " * (65 * 1024 * 1024)), "unpacks to more than 67108864 bytes"),
    ],
)
def test_what_cannot_be_read_is_refused_by_what_is_wrong_with_it(
    media_type: str, content: bytes | str, words: str
) -> None:
    assert refused(media_type, content).startswith(words)


def test_an_entity_of_a_docx_is_not_resolved() -> None:
    assert chunks(DOCX, _zipped("word/document.xml", ENTITIES.encode())) == []


PARTS = [b"<h1>", b"<table><td>", b"</p>", b"{", b"[", b'"', b":", b",", b"\n", b"PK\x03\x04", b"def f():", b"  "]
BYTES = st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(PARTS)), max_size=30).map(b"".join)


@given(st.sampled_from(sorted(MEDIA_TYPES)), BYTES)
@settings(max_examples=150)
def test_arbitrary_bytes_become_texts_that_can_be_kept_or_are_refused(media_type: str, content: bytes) -> None:
    try:
        found = chunks(media_type, content)
    except MalformedDocument:
        return
    for title, text in found:
        assert "\0" not in title + text
        (title + text).encode()
        assert len(text) <= LIMIT
        assert len(title) <= 1024


@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["pdf", "docx"]))
@settings(max_examples=60)
def test_a_damaged_document_is_read_or_refused(at: int, value: int, kind: str) -> None:
    """A good document with a changed byte, and one truncated."""
    good = pdf(["# Tea", "Hot."]) if kind == "pdf" else docx(paragraph("Tea", "Titre1") + paragraph("Hot."))
    bad = bytearray(good)
    bad[at % len(bad)] = value
    for content in (bytes(bad), good[: at % len(good)]):
        try:
            chunks("application/pdf" if kind == "pdf" else DOCX, content)
        except MalformedDocument:
            continue


WORDS = st.lists(st.from_regex(r"[a-z]{1,12}", fullmatch=True), min_size=1, max_size=60)


@given(WORDS, st.integers(100, 300))
@settings(max_examples=60)
def test_no_word_of_rows_json_html_or_code_is_lost(words: Sequence[str], limit: int) -> None:
    for media_type, content in [
        ("text/csv", "c\n" + "\n".join(words)),
        ("application/json", json.dumps({"a": words, "b": [{"c": word} for word in words]})),
        ("text/html", "".join(f"<p>{word}" for word in words)),
        ("text/x-python", "\n".join(f"def {word}():\n    {word}" for word in words)),
    ]:
        texts = " ".join(text for _, text in chunks(media_type, content, limit))
        assert all(word in texts for word in words)


async def test_a_document_is_read_in_a_process_of_its_own_where_it_may_take_long() -> None:
    [chunk] = await reading.read("application/pdf", pdf(["Hot."]), LIMIT, 0)
    assert (chunk.title, chunk.text) == ("page 1", "Hot.")
    with pytest.raises(MalformedDocument, match="cannot be read as PDF"):
        await reading.read("application/pdf", b"no", LIMIT, 0)


@pytest.mark.parametrize("media_type", ["application/pdf", "text/plain"])
async def test_a_document_that_takes_too_long_is_refused(media_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TIMEOUT_SECONDS", 0.0)
    with pytest.raises(MalformedDocument, match="takes more than 0 seconds"):
        await reading.read(media_type, pdf(["Hot."]) if media_type == "application/pdf" else b"Hot.", LIMIT, 0)
