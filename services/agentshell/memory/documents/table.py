"""CSV and tab-separated values: one block per row, with the names of its columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Generator
from typing import TYPE_CHECKING

from agentshell.memory.documents.block import Block, MalformedDocument, Position

if TYPE_CHECKING:
    from _csv import Reader

_DELIMITERS = ",;\t"
# Each row repeats the names of its columns.
_MAX_NAME_CHARACTERS = 80


def blocks(text: str) -> Generator[Block]:
    """Yields a block per row; the first row names the columns. Rows, including it, count from 1, as in spreadsheets.

    The delimiter is whichever of comma, semicolon and tab the first line has most of. Raises MalformedDocument for an
    unterminated quote, and for a field of more than 131,072 characters.
    """
    first_line = text[: text.find("\n")] if "\n" in text else text
    delimiter = max(_DELIMITERS, key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = [" ".join(name.split())[:_MAX_NAME_CHARACTERS] for name in _row(reader) or ()]
    number = 1
    while (row := _row(reader)) is not None:
        number += 1
        if any(map(str.strip, row)):
            yield Block("\n".join(_cells(names, row)), position=Position("row", number))
    if number == 1 and any(names):
        yield Block(", ".join(filter(None, names)), position=Position("row", 1))


def _row(reader: Reader) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise MalformedDocument(f"is not CSV at line {reader.line_num}: {error}") from None


def _cells(names: list[str], row: list[str]) -> Generator[str]:
    for index, cell in enumerate(row):
        if value := cell.strip():
            name = names[index] if index < len(names) else ""
            yield f"{name}: {value}" if name else value
