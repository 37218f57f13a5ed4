"""Which turns may begin: one at a time in a session, so many at once in all, tenants in fair shares. Pure."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass
from itertools import count

from kfm.turn.v1.turn_pb2 import PRIORITY_NORMAL, PRIORITY_UNSPECIFIED, Priority


@dataclass(frozen=True, slots=True)
class _Entry:
    tenant_id: str
    session: str
    rank: tuple[int, int]  # the lowest is next


class Schedule:
    """Turns that are not over. At most `max_active` have begun; those of one session begin one after another.

    Where not all can begin, the tenant with the fewest turns under way is next; within a tenant the higher priority,
    then the older turn.
    """

    def __init__(self, max_active: int) -> None:
        self._max_active = max_active
        self._numbers = count()
        self._entries: dict[str, _Entry] = {}
        self._sessions: dict[str, deque[str]] = {}
        self._active: set[str] = set()
        self._active_of = Counter[str]()
        self._ready: dict[str, list[tuple[tuple[int, int], str]]] = {}  # tenant -> heap of the first of each session

    @property
    def active_count(self) -> int:
        """How many turns have begun."""
        return len(self._active)

    def has_begun(self, turn_id: str) -> bool:
        """Returns whether the turn has begun."""
        return turn_id in self._active

    def add(self, turn_id: str, tenant_id: str, session: str, priority: Priority.ValueType = PRIORITY_NORMAL) -> None:
        """Adds a turn behind the others of its session."""
        level = PRIORITY_NORMAL if priority == PRIORITY_UNSPECIFIED else priority
        self._entries[turn_id] = _Entry(tenant_id, session, (-level, next(self._numbers)))
        queue = self._sessions.setdefault(session, deque())
        queue.append(turn_id)
        if queue[0] == turn_id:
            self._offer(turn_id)

    def resume(self, turn_id: str) -> None:
        """Says that a turn has begun before it came here."""
        if turn_id not in self._active:
            self._active.add(turn_id)
            self._active_of[self._entries[turn_id].tenant_id] += 1

    def begin(self) -> list[str]:
        """Begins turns as long as there is room, and returns them."""
        begun: list[str] = []
        while len(self._active) < self._max_active and self._ready:
            fairest = min(self._ready, key=lambda tenant_id: (self._active_of[tenant_id], self._ready[tenant_id][0]))
            turn_id = self._take(fairest)
            if turn_id in self._entries and turn_id not in self._active:
                self.resume(turn_id)
                begun.append(turn_id)
        return begun

    def remove(self, turn_id: str) -> None:
        """Removes a turn that is over, or waits for somebody."""
        entry = self._entries.pop(turn_id)
        if turn_id in self._active:
            self._active.discard(turn_id)
            self._active_of[entry.tenant_id] -= 1
            if not self._active_of[entry.tenant_id]:
                del self._active_of[entry.tenant_id]
        queue = self._sessions[entry.session]
        was_first = queue[0] == turn_id
        queue.remove(turn_id)
        if not queue:
            del self._sessions[entry.session]
        elif was_first:
            self._offer(queue[0])

    def _offer(self, turn_id: str) -> None:
        entry = self._entries[turn_id]
        heapq.heappush(self._ready.setdefault(entry.tenant_id, []), (entry.rank, turn_id))

    def _take(self, tenant_id: str) -> str:
        heap = self._ready[tenant_id]
        _, turn_id = heapq.heappop(heap)
        if not heap:
            del self._ready[tenant_id]
        return turn_id
