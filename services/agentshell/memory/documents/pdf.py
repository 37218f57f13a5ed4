"""PDF: the text of its pages, under the headings of its outline. Runs in a process of its own (worker.py)."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from pypdf import PdfReader
from pypdf.generic import Destination

from agentshell.memory.documents.block import Block, MalformedDocument, Position, heading

_MAX_PAGES = 5_000
_MAX_OUTLINE = 5_000
# How many more characters a heading may have on its page than in the outline, such as its number.
_MAX_MORE_CHARACTERS = 12


def blocks(content: bytes) -> Generator[Block]:
    """Splits a PDF into the texts between empty lines, each with its page; pictures have no text.

    Raises MalformedDocument if it has more than 5,000 pages or needs a password, and what `pypdf` raises.
    """
    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise MalformedDocument("needs a password")
    if len(reader.pages) > _MAX_PAGES:
        raise MalformedDocument(f"has {len(reader.pages)} pages, more than {_MAX_PAGES}: split it")
    outline = _outline(reader)
    for index, page in enumerate(reader.pages):
        yield from _page(page.extract_text(), Position("page", index + 1), outline.get(index, []))


def _page(text: str, position: Position, headings: list[Block]) -> Generator[Block]:
    paragraph: list[str] = []
    for line in (*text.splitlines(), ""):
        if found := _named(line, headings):
            headings = headings[headings.index(found) + 1 :]
        if paragraph and (found or not line.strip()):
            yield Block("\n".join(paragraph), position=position)
            paragraph = []
        if found:
            yield found
        elif line.strip():
            paragraph.append(line)


def _named(line: str, headings: Sequence[Block]) -> Block | None:
    """Returns the heading that a line is, if it is one."""
    said = " ".join(line.split())
    for each in headings:
        if said.endswith(each.text) and len(said) <= len(each.text) + _MAX_MORE_CHARACTERS:
            return each
    return None


def _outline(reader: PdfReader) -> Mapping[int, list[Block]]:
    """Returns the headings by page, counted from 0. A broken outline is used as far as it can be read."""
    found: dict[int, list[Block]] = {}
    try:
        left: list[tuple[Any, int]] = [(reader.outline, 0)]
        for _ in range(_MAX_OUTLINE):
            if not left:
                break
            item, level = left.pop()
            if isinstance(item, Destination):
                page = reader.get_destination_page_number(item)
                made = heading(item.title or "", max(level, 1))
                if page is not None and made.text and made.level:
                    found.setdefault(page, []).append(made)
            else:
                left.extend((child, level + 1) for child in reversed(item))
    except Exception:  # noqa: S110 - whatever is wrong with it
        pass
    return found
