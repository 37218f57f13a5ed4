"""HTML: headings, and the text of block elements. Scripts and styles are left out."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from agentshell.memory.documents import markup
from agentshell.memory.documents.block import Block, MalformedDocument, heading

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LEFT_OUT = frozenset({"script", "style", "template", "noscript", "iframe", "object", "svg", "math", "select", "head"})
# Elements that end the text before and after them. Anything else is inline.
_BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "dialog"),
        *("div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header"),
        *("hr", "html", "legend", "li", "main", "nav", "ol", "p", "pre"),
        *("section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul"),
    )
)
_CELLS = frozenset({"td", "th"})
_PIECE_CHARACTERS = 65_536
# The cost of an end tag grows with it.
_MAX_DEPTH = 512


def blocks(text: str) -> Generator[Block]:
    """Splits HTML, however malformed: what a browser would show as text, in order.

    Raises MalformedDocument for elements nested more than 512 deep.
    """
    reader = _Reader()
    parser = markup.html(reader)
    for start in range(0, len(text), _PIECE_CHARACTERS):
        parser.feed(text[start : start + _PIECE_CHARACTERS])
        yield from reader.taken()
    if text:
        parser.close()
    yield from reader.taken()


class _Reader:
    """Collects blocks from the elements and text that the parser reports."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._text: list[str] = []
        self._left_out = 0  # Depth inside elements that are left out.
        self._depth = 0
        self._pre = 0
        self._level = 0

    def taken(self) -> list[Block]:
        """Returns the blocks collected since the last call."""
        taken, self._blocks = self._blocks, []
        return taken

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise MalformedDocument(f"has elements nested more than {_MAX_DEPTH} deep")
        if tag in _LEFT_OUT:
            self._left_out += 1
        elif tag in _HEADINGS:
            self._flush()
            self._level = _HEADINGS[tag]
        elif tag in _BLOCKS:
            self._flush()
            self._pre += tag == "pre"
        elif tag in _CELLS:
            self._text.append(" | " if any(map(str.strip, self._text)) else "")
        elif tag == "br":
            self._text.append("\n")

    def end(self, tag: str) -> None:
        self._depth -= 1
        if tag in _LEFT_OUT:
            self._left_out = max(self._left_out - 1, 0)
        elif tag in _HEADINGS or tag in _BLOCKS:
            self._flush()
            self._pre = max(self._pre - (tag == "pre"), 0)

    def data(self, data: str) -> None:
        if not self._left_out:
            self._text.append(data if self._pre else " ".join(f"x{data}x".split())[1:-1])

    def comment(self, text: str) -> None:
        """Does nothing: comments are not text."""

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        text, level = "".join(self._text), self._level
        self._text, self._level = [], 0
        if not text.strip():
            return
        kept = text.strip("\n") if self._pre else "\n".join(line.strip() for line in text.strip().splitlines())
        self._blocks.append(heading(kept, level) if level else Block(kept))
