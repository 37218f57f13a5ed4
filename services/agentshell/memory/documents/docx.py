"""DOCX: a Word document's paragraphs and tables, and its headings. Footnotes, headers and comments are left out."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Generator, Mapping

from agentshell.memory.documents import markup
from agentshell.memory.documents.block import Block, MalformedDocument, heading

_MAIN, _STYLES = "word/document.xml", "word/styles.xml"
# The limit of an unpacked part: a small file may unpack to any size.
_MAX_PART_BYTES = 64 * 1024 * 1024
_PIECE_BYTES = 65_536
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_HEADING_STYLE = re.compile(r"heading (?P<level>[1-9])", re.IGNORECASE)


def blocks(content: bytes) -> Generator[Block]:
    """Splits a document: one block per paragraph, and one per table row.

    Raises MalformedDocument if a part unpacks to more than 64 MiB, and what `zipfile` and `lxml` raise for bad files.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        if _MAIN not in package.namelist():
            raise MalformedDocument(f"is not a DOCX: it has no {_MAIN}")
        styles = _Styles()
        if _STYLES in package.namelist():
            for _ in _parse(package, _STYLES, styles):
                pass
        body = _Body(styles.levels)
        for _ in _parse(package, _MAIN, body):
            yield from body.taken()


def _parse(package: zipfile.ZipFile, name: str, target: markup.Target) -> Generator[None]:
    """Feeds a part to the target; yields after each piece."""
    parser = markup.xml(target)
    total_bytes = 0
    with package.open(name) as part:
        while piece := part.read(_PIECE_BYTES):
            total_bytes += len(piece)
            if total_bytes > _MAX_PART_BYTES:
                raise MalformedDocument(f"unpacks to more than {_MAX_PART_BYTES} bytes: split it")
            parser.feed(piece)
            yield
    parser.close()
    yield


class _Styles:
    """Which styles are headings, and of which level, according to `word/styles.xml`."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self._style = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        value = attributes.get(f"{_WORD}val", "")
        if tag == f"{_WORD}style":
            self._style = attributes.get(f"{_WORD}styleId", "")
        elif tag == f"{_WORD}name" and (found := _HEADING_STYLE.fullmatch(value)):
            self.levels[self._style] = int(found["level"])
        elif tag == f"{_WORD}outlineLvl" and (level := _level(value)):
            self.levels[self._style] = level

    def end(self, tag: str) -> None:
        """Does nothing."""

    def data(self, data: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class _Body:
    """Collects the blocks of `word/document.xml`."""

    def __init__(self, levels: Mapping[str, int]) -> None:
        self._levels = levels
        self._blocks: list[Block] = []
        self._text: list[str] = []
        self._level = 0
        self._cells: list[list[str]] = []  # Of the current row of each table we are inside.
        self._fallbacks = 0  # Depth inside fallbacks, which repeat what is beside them.
        self._is_text = False

    def taken(self) -> list[Block]:
        """Returns the blocks collected since the last call."""
        taken, self._blocks = self._blocks, []
        return taken

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        value = attributes.get(f"{_WORD}val", "")
        self._fallbacks += tag == _FALLBACK
        match tag.removeprefix(_WORD):
            case "t":
                self._is_text = not self._fallbacks
            case "tab":
                self._text.append("\t" if self._text else "")
            case "br" | "cr":
                self._text.append("\n")
            case "pStyle":
                self._level = self._level or self._levels.get(value, 0)
            case "outlineLvl":
                self._level = _level(value)
            case "tr":
                self._cells.append([])
            case _:
                pass

    def end(self, tag: str) -> None:
        self._fallbacks -= tag == _FALLBACK
        match tag.removeprefix(_WORD):
            case "t":
                self._is_text = False
            case "p":
                self._end_paragraph()
            case "tr" if self._cells:
                if row := " | ".join(self._cells.pop()):
                    self._say(row, 0)
            case _:
                pass

    def data(self, data: str) -> None:
        if self._is_text:
            self._text.append(data)

    def close(self) -> None:
        self._end_paragraph()

    def _end_paragraph(self) -> None:
        text, level = "".join(self._text).strip(), self._level
        self._text, self._level = [], 0
        if text:
            self._say(text, level)

    def _say(self, text: str, level: int) -> None:
        if self._cells:
            self._cells[-1].append(text)
        else:
            self._blocks.append(heading(text, level) if level else Block(text))


def _level(value: str) -> int:
    """Returns an outline level's heading level; 0 if it is not a heading. Outlines count from 0, and 9 is text."""
    return int(value) + 1 if value in set("012345678") else 0
