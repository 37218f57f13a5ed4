"""The turns that ended last: what asks for one of them is late."""

from __future__ import annotations

_MAX_TURNS = 10_000


class Ended:
    """Turns that are over and forgotten. A log that does not drop duplicates (Iggy) may say twice what asks for one.

    Bounded: what comes after so many other turns, or to another process, is taken for new; its effects have the keys
    that the first one's had.
    """

    def __init__(self) -> None:
        self._turns: dict[str, None] = {}  # the oldest first

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._turns

    def add(self, turn_id: str) -> None:
        """Adds a turn, and forgets the oldest where there are too many."""
        self._turns[turn_id] = None
        if len(self._turns) > _MAX_TURNS:
            del self._turns[next(iter(self._turns))]
