"""Markdown: headings, and paragraphs, lists, tables and fenced code as they are."""

from __future__ import annotations

import re
from collections.abc import Generator

from agentshell.memory.documents.block import Block
from agentshell.memory.documents.plain import lines

_HEADING = re.compile(r" {0,3}(?P<marks>#{1,6})[ \t]+(?P<title>\S.{0,159}?)(?:[ \t]+#+)?[ \t]*")
_UNDERLINED = re.compile(r"\s*(?P<title>\S.{0,159}?)\s*")
_UNDERLINE = re.compile(r" {0,3}(?P<marks>=+|-{2,})[ \t]*")
_FENCE = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})")


def blocks(text: str) -> Generator[Block]:
    """Splits Markdown. No text is lost: each line is in a block, except for empty lines and underlines of headings."""
    under_way: list[str] = []  # Lines of the current paragraph or fenced block.
    fence = ""
    for line in lines(text):
        if fence:
            under_way.append(line)
            if _closes(line, fence):
                yield Block("\n".join(under_way))
                under_way, fence = [], ""
            continue
        opening = _FENCE.match(line)
        heading = _heading(line, under_way)
        if under_way and (opening or heading or not line.strip()):
            if not (heading and _UNDERLINE.fullmatch(line)):
                yield Block("\n".join(under_way))
            under_way = []
        if heading:
            yield heading
        elif line.strip():
            under_way.append(line)
        fence = opening["marks"] if opening else ""
    if under_way:
        yield Block("\n".join(under_way))


def _heading(line: str, before: list[str]) -> Block | None:
    """Returns the heading that the line is, or that it makes of the only line `before` it by underlining it."""
    if heading := _HEADING.fullmatch(line):
        return Block(heading["title"], len(heading["marks"]))
    if len(before) == 1 and (underline := _UNDERLINE.fullmatch(line)) and (title := _UNDERLINED.fullmatch(before[0])):
        return Block(title["title"], 1 if underline["marks"][0] == "=" else 2)
    return None


def _closes(line: str, fence: str) -> bool:
    marks = line.strip()
    return len(marks) >= len(fence) and not marks.strip(fence[0])
