"""Decides which turns may start: one at a time per session, a limited number in all, fairly by tenant. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count

from agentshell.runtime.fair_queue import FairQueue
from kfm.turn.v1.turn_pb2 import PRIORITY_NORMAL, Priority


@dataclass(frozen=True, slots=True)
class _Entry:
    tenant_id: str
    session: str
    priority: Priority.ValueType
    age: int
    is_awaited: bool


class Schedule:
    """Turns that are not over. At most `max_active` have started; those of one session start one after another.

    If not all can start, `FairQueue` picks the next. A turn that another turn waits for starts at once, even beyond
    `max_active`, because turns that wait for such turns may have taken all the room.
    """

    def __init__(self, max_active: int) -> None:
        self._max_active = max_active
        self._ages = count()
        self._entries: dict[str, _Entry] = {}
        self._sessions: dict[str, deque[str]] = {}
        self._active: set[str] = set()
        self._ready = FairQueue[str]()  # the first turn of each session
        self._awaited: list[str] = []  # the same, but those that need no room

    @property
    def active_count(self) -> int:
        """How many turns have started."""
        return len(self._active)

    def has_begun(self, turn_id: str) -> bool:
        """Returns whether the turn has started."""
        return turn_id in self._active

    def add(
        self,
        turn_id: str,
        tenant_id: str,
        session: str,
        priority: Priority.ValueType = PRIORITY_NORMAL,
        *,
        is_awaited: bool = False,
    ) -> None:
        """Adds a turn behind the others in its session. `is_awaited`: another turn waits for it."""
        self._entries[turn_id] = _Entry(tenant_id, session, priority, next(self._ages), is_awaited)
        queue = self._sessions.setdefault(session, deque())
        queue.append(turn_id)
        if queue[0] == turn_id:
            self._offer(turn_id)

    def resume(self, turn_id: str) -> None:
        """Records that a turn had started before it came here."""
        if turn_id not in self._active:
            self._active.add(turn_id)
            self._ready.begin(self._entries[turn_id].tenant_id)

    def begin(self) -> list[str]:
        """Starts turns while there is room, and returns them."""
        begun: list[str] = []
        while self._awaited or (len(self._active) < self._max_active and self._ready):
            turn_id = self._awaited.pop() if self._awaited else self._ready.take()[1]
            if turn_id in self._entries and turn_id not in self._active:
                self.resume(turn_id)
                begun.append(turn_id)
        return begun

    def remove(self, turn_id: str) -> None:
        """Removes a turn that is over or waits for somebody."""
        entry = self._entries.pop(turn_id)
        if turn_id in self._active:
            self._active.discard(turn_id)
            self._ready.end(entry.tenant_id)
        queue = self._sessions[entry.session]
        was_first = queue[0] == turn_id
        queue.remove(turn_id)
        if not queue:
            del self._sessions[entry.session]
        elif was_first:
            self._offer(queue[0])

    def _offer(self, turn_id: str) -> None:
        entry = self._entries[turn_id]
        if entry.is_awaited:
            self._awaited.append(turn_id)
        else:
            self._ready.put(entry.tenant_id, entry.priority, entry.age, turn_id)
