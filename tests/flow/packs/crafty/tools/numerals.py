"""Converts numbers to other notations."""

from typing import Annotated

from .table import LETTERS


def roman(number: Annotated[int, "From 1 to 3999."]) -> str:
    """Writes a whole number in Roman numerals."""
    if not 1 <= number <= 3999:
        raise ValueError(f"{number} has no Roman numeral")
    text = ""
    for value, letters in LETTERS:
        count, number = divmod(number, value)
        text += letters * count
    return text
