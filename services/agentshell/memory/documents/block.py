"""What every format is split into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# A longer line is not a heading, so that a path of six headings and a position fits where a citation keeps it.
MAX_HEADING_CHARACTERS = 160
MAX_LEVEL = 6


class Position(NamedTuple):
    """Where a block is, in the unit that its format counts: `page`, `row` or `item`."""

    unit: str
    number: int


@dataclass(frozen=True, slots=True)
class Block:
    """A heading (of level 1 to 6), or text to keep together if possible (level 0).

    A heading without text ends the headings of its level and below.
    """

    text: str
    level: int = 0
    position: Position | None = None


class MalformedDocument(ValueError):  # noqa: N818 - it describes the document
    """A document is not what its media type says, or exceeds a limit. Its text continues "document 'x' ..."."""


def heading(text: str, level: int) -> Block:
    """Returns a heading, or a text if it is too long for one. Replaces each run of white space by one space."""
    line = " ".join(text.split())
    return Block(line, min(level, MAX_LEVEL)) if len(line) <= MAX_HEADING_CHARACTERS else Block(line)
