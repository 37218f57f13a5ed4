"""Packs the blocks of a document into chunks: cuts between sections first, then blocks, lines, sentences and words.

No text is lost: each block is in a chunk's text or, if it is a heading, in its title. Chunks of one section overlap, so
that text across a cut can still be found; sections do not.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from agentshell.memory.documents.block import Block, Position

_TITLE_SEPARATOR = " > "
_BLOCK_SEPARATOR = "\n\n"
# Where a block too large for a chunk is cut, best first.
_CUTS = ("\n", ". ", "? ", "! ", " ")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document. The first `repeated_characters` of its text repeat the end of the previous chunk."""

    title: str
    text: str
    repeated_characters: int = 0


def chunks(blocks: Iterable[Block], limit: int, overlap: int) -> Generator[Chunk]:
    """Packs blocks into chunks of at most `limit` characters, titled by the headings above them and their position.

    A block that fits stays whole. Overlaps are at most `overlap` characters, and at most half a chunk.
    """
    headings: list[Block] = []
    section: list[Block] = []
    for block in blocks:
        if not block.level:
            section.append(block)
            continue
        yield from _section(headings, section, block.level, limit, overlap)
        headings = [heading for heading in headings if heading.level < block.level]
        headings += [block] if block.text else []
        section = []
    yield from _section(headings, section, 0, limit, overlap)


def _section(headings: list[Block], blocks: list[Block], next_level: int, limit: int, overlap: int) -> Generator[Chunk]:
    if not blocks and headings and next_level <= headings[-1].level:
        # No chunk below has the heading in its title, so it becomes text itself.
        blocks = [Block(headings[-1].text)]
    return _pack([heading.text for heading in headings], blocks, limit, overlap)


def _pack(headings: list[str], blocks: Iterable[Block], limit: int, overlap: int) -> Generator[Chunk]:
    """Fills chunks with whole blocks; begins each but the first with the end of the previous one, if there is room."""
    overlap = min(overlap, limit // 2)
    text, repeated = "", 0
    first: Position | None = None  # Of the blocks in the chunk that are not repeated.
    last: Position | None = None
    for block in blocks:
        separator = _BLOCK_SEPARATOR
        for piece in _pieces(block.text, limit, limit - overlap - len(separator)):
            if text and len(text) + len(separator) + len(piece) > limit:
                yield from _chunk(_title(headings, first, last), text, repeated)
                text = _tail(text, min(overlap, limit - len(separator) - len(piece)))
                repeated, first = len(text), None
            text += separator + piece if text else piece
            separator = ""
            first, last = first or block.position, block.position
    yield from _chunk(_title(headings, first, last), text, repeated)


def _title(headings: list[str], first: Position | None, last: Position | None) -> str:
    place: list[str] = []
    if first and last:
        one = first.number == last.number
        place = [f"{first.unit} {first.number}" if one else f"{first.unit}s {first.number}–{last.number}"]
    return _TITLE_SEPARATOR.join(headings + place)


def _chunk(title: str, text: str, repeated_characters: int) -> Generator[Chunk]:
    if text[repeated_characters:].strip():
        yield Chunk(title, text.rstrip(), repeated_characters)


def _pieces(block: str, limit: int, room: int) -> Generator[str]:
    """Yields the block whole if it fits the limit, and otherwise in pieces that fit the room."""
    start = 0
    while len(block) - start > limit:
        end = _cut(block, start, start + max(room, 1))
        yield block[start:end]
        start = end
    yield block[start:]


def _cut(block: str, start: int, end: int) -> int:
    """Returns the best place to cut in the second half of the text between `start` and `end`."""
    for separator in _CUTS:
        found = block.rfind(separator, (start + end) // 2, end)
        if found >= 0:
            return found + len(separator)
    return end


def _tail(text: str, room: int) -> str:
    """Returns the end of a text, beginning at a line, a sentence or a word if possible."""
    window = text[-room:] if room > 0 else ""
    for separator in _CUTS:
        found = window.find(separator, 0, len(window) // 2)
        if found >= 0:
            return window[found + len(separator) :].lstrip()
    return window.lstrip()
