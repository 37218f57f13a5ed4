"""Plain text: paragraphs, separated by empty lines."""

from __future__ import annotations

import io
from collections.abc import Generator

from agentshell.memory.documents.block import Block


def blocks(text: str) -> Generator[Block]:
    """Splits plain text into paragraphs."""
    paragraph: list[str] = []
    for line in lines(text):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield Block("\n".join(paragraph))
            paragraph = []
    if paragraph:
        yield Block("\n".join(paragraph))


def lines(text: str) -> Generator[str]:
    """Yields lines without their line breaks, one at a time, because a document may be large."""
    for line in io.StringIO(text, newline=None):
        yield line.removesuffix("\n")
