"""Splits Markdown into blocks that can be quoted as they are: paragraphs, lists, tables, code. Pure.

This is not a parser: it reads the plain forms that documents use, and takes anything else for prose.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")


def groups(text: str) -> list[list[str]]:
    """Returns the blocks of a text in order; what introduces a block, such as a heading, is grouped with it."""
    found: list[list[str]] = []
    is_awaited = False
    for block in blocks(text):
        if is_awaited:
            found[-1].append(block)
        else:
            found.append([block])
        is_awaited = bool(_HEADING.match(block)) or block.rstrip(" *_").endswith(":")
    return found


def blocks(text: str) -> list[str]:
    """Returns the blocks of a text in order, each verbatim; a code block that the text cuts off is closed."""
    found: list[list[str]] = []
    fence = ""
    is_open = False  # Whether the last block continues.
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if fence:
            found[-1].append(line)
            if line.strip().startswith(fence):
                fence, is_open = "", False
        elif not line.strip():
            is_open = False
        elif mark or not is_open or _HEADING.match(line):
            found.append([line])
            fence = mark.group(1) if mark else ""
            is_open = not _HEADING.match(line)
        else:
            found[-1].append(line)
    if fence:
        found[-1].append(fence)
    return ["\n".join(lines) for lines in found]


def is_prose(block: str) -> bool:
    """Whether words can be added to the end of a block: it is neither code nor a table."""
    return not (_FENCE.match(block) or block.rstrip().endswith("|"))
