"""What every format is taken apart into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# A longer heading is none, so that the path of six of them, and a place, fit where a citation keeps them.
MAX_HEADING_CHARACTERS = 160
MAX_LEVEL = 6


class Position(NamedTuple):
    """Where a block stands, by what its format counts: `page`, `row` or `item`."""

    unit: str
    number: int


@dataclass(frozen=True, slots=True)
class Block:
    """A heading (of a level from 1 to 6), or what stays together where it can (level 0).

    A heading without a text ends those of its level and beneath.
    """

    text: str
    level: int = 0
    position: Position | None = None


class MalformedDocument(ValueError):  # noqa: N818 - the document is
    """A document is not what its media type says, or more than is taken of it. Its text goes on: "document 'x' ..."."""


def heading(text: str, level: int) -> Block:
    """Returns a heading, or a text where it is too long for one. Its white space counts as one space each."""
    line = " ".join(text.split())
    return Block(line, min(level, MAX_LEVEL)) if len(line) <= MAX_HEADING_CHARACTERS else Block(line)
