"""Which turns may begin: one at a time in a session, in order, and so many at once in all. Pure."""

from __future__ import annotations

from collections import deque


class Schedule:
    """Turns that are not over. At most `max_active` have begun; those of one session begin one after another."""

    def __init__(self, max_active: int) -> None:
        self._max_active = max_active
        self._session_of: dict[str, str] = {}
        self._sessions: dict[str, deque[str]] = {}
        self._active: set[str] = set()
        self._waiting: deque[str] = deque()

    @property
    def active_count(self) -> int:
        """How many turns have begun."""
        return len(self._active)

    def add(self, turn_id: str, session: str) -> None:
        """Adds a turn behind the others of its session."""
        self._session_of[turn_id] = session
        self._sessions.setdefault(session, deque()).append(turn_id)

    def begin(self, turn_id: str) -> bool:
        """Begins a turn if it may, and returns whether it has begun. One that waits for room is remembered."""
        if turn_id in self._active:
            return True
        if self._sessions[self._session_of[turn_id]][0] != turn_id:
            return False
        if len(self._active) >= self._max_active:
            self._waiting.append(turn_id)
            return False
        self._active.add(turn_id)
        return True

    def remove(self, turn_id: str) -> list[str]:
        """Removes a turn that is over, and returns those that may begin for it."""
        session = self._session_of.pop(turn_id)
        queue = self._sessions[session]
        queue.remove(turn_id)
        self._active.discard(turn_id)
        freed = [queue[0]] if queue else []
        if not queue:
            del self._sessions[session]
        while self._waiting:
            if (waiting := self._waiting.popleft()) in self._session_of:
                return [*freed, waiting]
        return freed
