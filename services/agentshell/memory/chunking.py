"""Takes a document apart along its structure: sections first, then paragraphs and code, then lines, sentences, words.

No text is lost: each line is in a chunk's text, or in its title as a heading. Chunks of one section overlap, so that
what was said across a cut can still be found; sections do not.
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass

# A longer line is no heading, so a title has at most 6 * 160 + 5 * 3 = 975 characters.
_HEADING = re.compile(r" {0,3}(?P<marks>#{1,6})[ \t]+(?P<title>\S.{0,159}?)(?:[ \t]+#+)?[ \t]*")
_UNDERLINED = re.compile(r"\s*(?P<title>\S.{0,159}?)\s*")
_UNDERLINE = re.compile(r" {0,3}(?P<marks>=+|-{2,})[ \t]*")
_FENCE = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})")
_TITLE_SEPARATOR = " > "
_BLOCK_SEPARATOR = "\n\n"
# Where a block too large for a chunk is cut, best first.
_CUTS = ("\n", ". ", "? ", "! ", " ")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document. The first `repeated_characters` of its text are the end of the chunk before."""

    title: str
    text: str
    repeated_characters: int = 0


@dataclass(frozen=True, slots=True)
class _Block:
    """A heading (of a level from 1 to 6), or what stays together where it can (level 0)."""

    text: str
    level: int = 0


def markdown(text: str, limit: int, overlap: int) -> Generator[Chunk]:
    """Takes Markdown apart into chunks of at most `limit` characters, each titled by the headings that lead to it.

    A paragraph, list, table or fenced code block stays whole where it fits. Overlaps are `overlap` characters at the
    most, and half a chunk.
    """
    headings: list[_Block] = []
    blocks: list[str] = []
    for block in _markdown_blocks(text):
        if not block.level:
            blocks.append(block.text)
            continue
        yield from _section(headings, blocks, block.level, limit, overlap)
        headings = [*(heading for heading in headings if heading.level < block.level), block]
        blocks = []
    yield from _section(headings, blocks, 0, limit, overlap)


def plain(text: str, limit: int, overlap: int) -> Generator[Chunk]:
    """Takes plain text apart into chunks of at most `limit` characters; a paragraph stays whole where it fits."""
    return _pack("", _paragraphs(text), limit, overlap)


def _section(headings: list[_Block], blocks: list[str], next_level: int, limit: int, overlap: int) -> Generator[Chunk]:
    if not blocks and headings and next_level <= headings[-1].level:
        blocks = [headings[-1].text]  # Nothing beneath carries the heading in its title: it is a text of its own.
    title = _TITLE_SEPARATOR.join(heading.text for heading in headings)
    return _pack(title, blocks, limit, overlap)


def _pack(title: str, blocks: Iterable[str], limit: int, overlap: int) -> Generator[Chunk]:
    """Fills chunks with whole blocks; begins each but the first with the end of the one before, where there is room."""
    overlap = min(overlap, limit // 2)
    text, repeated = "", 0
    for block in blocks:
        separator = _BLOCK_SEPARATOR
        for piece in _pieces(block, limit, limit - overlap - len(separator)):
            if text and len(text) + len(separator) + len(piece) > limit:
                yield from _chunk(title, text, repeated)
                text = _tail(text, min(overlap, limit - len(separator) - len(piece)))
                repeated = len(text)
            text += separator + piece if text else piece
            separator = ""
    yield from _chunk(title, text, repeated)


def _chunk(title: str, text: str, repeated_characters: int) -> Generator[Chunk]:
    if text[repeated_characters:].strip():
        yield Chunk(title, text.rstrip(), repeated_characters)


def _pieces(block: str, limit: int, room: int) -> Generator[str]:
    """Yields the block whole where it fits the limit, and otherwise cut into pieces that fit the room."""
    start = 0
    while len(block) - start > limit:
        end = _cut(block, start, start + max(room, 1))
        yield block[start:end]
        start = end
    yield block[start:]


def _cut(block: str, start: int, end: int) -> int:
    """Returns where the best cut in the second half of what lies between `start` and `end` is."""
    for separator in _CUTS:
        found = block.rfind(separator, (start + end) // 2, end)
        if found >= 0:
            return found + len(separator)
    return end


def _tail(text: str, room: int) -> str:
    """Returns the end of a text, from the beginning of a line, a sentence or a word on."""
    window = text.rstrip()[-room:] if room > 0 else ""
    for separator in _CUTS:
        found = window.find(separator, 0, len(window) // 2)
        if found >= 0:
            return window[found + len(separator) :].lstrip()
    return window.lstrip()


def _paragraphs(text: str) -> Generator[str]:
    lines: list[str] = []
    for line in _lines(text):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _markdown_blocks(text: str) -> Generator[_Block]:
    lines: list[str] = []  # Of the paragraph, or the fenced block, under way.
    fence = ""
    for line in _lines(text):
        if fence:
            lines.append(line)
            if _closes(line, fence):
                yield _Block("\n".join(lines))
                lines, fence = [], ""
            continue
        opening = _FENCE.match(line)
        heading = _heading(line, lines)
        if lines and (opening or heading or not line.strip()):
            if not (heading and _UNDERLINE.fullmatch(line)):
                yield _Block("\n".join(lines))
            lines = []
        if heading:
            yield heading
        elif line.strip():
            lines.append(line)
        fence = opening["marks"] if opening else ""
    if lines:
        yield _Block("\n".join(lines))


def _heading(line: str, before: list[str]) -> _Block | None:
    """Returns the heading that the line is, or makes of the only line `before` it by underlining it."""
    if heading := _HEADING.fullmatch(line):
        return _Block(heading["title"], len(heading["marks"]))
    if len(before) == 1 and (underline := _UNDERLINE.fullmatch(line)) and (title := _UNDERLINED.fullmatch(before[0])):
        return _Block(title["title"], 1 if underline["marks"][0] == "=" else 2)
    return None


def _closes(line: str, fence: str) -> bool:
    marks = line.strip()
    return len(marks) >= len(fence) and not marks.strip(fence[0])


def _lines(text: str) -> Generator[str]:
    """Yields lines without their ends, one at a time: a document may be large."""
    for line in io.StringIO(text, newline=None):
        yield line.removesuffix("\n")
