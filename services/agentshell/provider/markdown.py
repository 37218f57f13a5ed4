"""Markdown cut into what can be quoted: sentences, list items, lists of steps, tables, blocks of code. Pure.

Not a parser of Markdown: a reader of the plain forms that documents use. What it does not know it takes for prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

_FENCE = re.compile(r"^\s{0,3}(```+|~~~+)")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+(.*?)\s*#*$")
_ITEM = re.compile(r"^\s*(?:[-*+]|(\d{1,3})[.)])\s+\S")
_TABLE = re.compile(r"^\s*\|.*\|\s*$")
# A sentence ends at its mark, quotes and emphasis included, and goes on after the usual abbreviations.
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]`*_])|(?<=[.!?]\*\*))"
    r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<!\betc\.)\s+(?=[A-Z0-9`\"'(\[*_])"
)


class Kind(Enum):
    """What a quotable piece is."""

    SENTENCE = "sentence"
    ITEM = "item"
    STEPS = "steps"
    TABLE = "table"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece that can be quoted alone. `block` counts the blocks of the text; `heading` is what it stands under."""

    kind: Kind
    text: str
    block: int
    heading: str


def units(text: str) -> list[Unit]:
    """Returns the pieces of a text in their order."""
    found: list[Unit] = []
    heading = ""
    for block, lines in enumerate(_blocks(text.splitlines())):
        match = _HEADING.match(lines[0])
        if match:
            heading = match.group(1)
            continue
        found += [Unit(kind, piece, block, heading) for kind, piece in _pieces(lines)]
    return found


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Yields the lines of each block: a heading, a fence with its content, a list, a table, or a paragraph."""
    block: list[str] = []
    fence = ""
    for line in lines:
        mark = _FENCE.match(line)
        if fence:
            block.append(line)
            if mark and line.strip().startswith(fence):
                yield block
                block, fence = [], ""
            continue
        is_break = not line.strip() or bool(mark) or bool(_HEADING.match(line))
        if block and (is_break or (_form(line) != _form(block[0]) and not _continues(block, line))):
            yield block
            block = []
        if mark:
            fence = mark.group(1)
        if line.strip():
            block.append(line)
        if _HEADING.match(line):
            yield block
            block = []
    if block:
        yield block


def _form(line: str) -> str:
    if _TABLE.match(line):
        return "table"
    item = _ITEM.match(line)
    if item is None:
        return "prose"
    return "steps" if item.group(1) else "items"


def _continues(block: list[str], line: str) -> bool:
    """Whether a line of another form than its block's belongs to it: to the list item before it."""
    return _form(block[0]) in ("items", "steps") and (_form(line) == "prose" or line[0].isspace())


def _pieces(lines: list[str]) -> list[tuple[Kind, str]]:
    mark = _FENCE.match(lines[0])
    if mark:
        closed = lines[-1].strip().startswith(mark.group(1)) and len(lines) > 1
        return [(Kind.CODE, "\n".join(lines if closed else [*lines, mark.group(1)]))]
    match _form(lines[0]):
        case "table":
            return [(Kind.TABLE, "\n".join(line.strip() for line in lines))]
        case "items":
            return [(Kind.ITEM, item) for item in _items(lines)]
        case "steps":  # They mean little one by one.
            return [(Kind.STEPS, "\n".join(_items(lines)))]
        case _:
            prose = " ".join(line.strip().removeprefix("> ") for line in lines)
            return [(Kind.SENTENCE, sentence) for sentence in _SENTENCE_END.split(prose) if sentence]


def _items(lines: list[str]) -> list[str]:
    starts = 0

    def item_of(line: str) -> int:
        nonlocal starts
        starts += bool(_ITEM.match(line))
        return starts

    return [
        " ".join([group[0].rstrip(), *(line.strip() for line in group[1:])])
        for group in (list(lines) for _, lines in groupby(lines, item_of))
    ]
