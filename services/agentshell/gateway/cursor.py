"""The cursor at which a reader of a turn resumes. Opaque to clients, and invalid for any other turn."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cursor:
    """The first offsets in `agent.turns` and `agent.outputs` that the reader of a turn has not seen."""

    turn_id: str
    turns_offset: int
    outputs_offset: int

    def encode(self) -> str:
        """Returns the cursor as clients see it."""
        text = f"{self.turn_id} {self.turns_offset} {self.outputs_offset}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(text: str, turn_id: str) -> Cursor:
    """Returns the cursor in `text`, which must be of `turn_id`. Raises ValueError, saying what is wrong with it."""
    try:
        plain = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
        named, turns_offset, outputs_offset = plain.split(" ")
        cursor = Cursor(named, int(turns_offset), int(outputs_offset))
    except (binascii.Error, UnicodeError, ValueError):
        raise ValueError(
            "the cursor was not made by this service; leave it empty to start from the beginning"
        ) from None
    if named != turn_id:
        raise ValueError(
            f"the cursor belongs to turn {named}, not to {turn_id}; leave it empty to start from the beginning"
        )
    if cursor.turns_offset < 0 or cursor.outputs_offset < 0:
        raise ValueError("the cursor was not made by this service; leave it empty to start from the beginning")
    return cursor
