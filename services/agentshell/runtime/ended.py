"""The turns that ended most recently: a request for one of them is a repeat."""

from __future__ import annotations

_MAX_TURNS = 10_000


class Ended:
    """Turns that are over and forgotten. A log that does not drop duplicates (Iggy) may repeat their requests.

    Bounded: a repeat after many other turns, or in another process, is taken for new; its effects then have the same
    keys as before.
    """

    def __init__(self) -> None:
        self._turns: dict[str, None] = {}  # oldest first

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._turns

    def add(self, turn_id: str) -> None:
        """Adds a turn, and forgets the oldest if there are too many."""
        self._turns[turn_id] = None
        if len(self._turns) > _MAX_TURNS:
            del self._turns[next(iter(self._turns))]
