"""A queue shared fairly by tenants, so that a busy one does not hold up the others. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Generic, TypeVar

from kfm.turn.v1.turn_pb2 import PRIORITY_NORMAL, PRIORITY_UNSPECIFIED, Priority

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting items, and how many of each tenant's are under way.

    Next is the tenant with the fewest items under way and, among those, the least recently served. Within a tenant,
    higher priority comes first, then lower `age`.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[int, int, T]]] = {}  # tenant -> heap; the tenant just served goes last
        self._under_way = Counter[str]()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, tenant_id: str, priority: Priority.ValueType, age: int, item: T) -> None:
        """Adds an item."""
        level = PRIORITY_NORMAL if priority == PRIORITY_UNSPECIFIED else priority
        heapq.heappush(self._waiting.setdefault(tenant_id, []), (-level, age, item))

    def take(self) -> tuple[str, T]:
        """Removes and returns the next item with its tenant. The queue must not be empty."""
        tenant_id = min(self._waiting, key=self._under_way.__getitem__)
        heap = self._waiting.pop(tenant_id)
        *_, item = heapq.heappop(heap)
        if heap:
            self._waiting[tenant_id] = heap
        return tenant_id, item

    def begin(self, tenant_id: str) -> None:
        """Counts an item of a tenant as under way, whether it waited or not."""
        self._under_way[tenant_id] += 1

    def end(self, tenant_id: str) -> None:
        """Counts an item of a tenant as no longer under way."""
        self._under_way[tenant_id] -= 1
        if not self._under_way[tenant_id]:
            del self._under_way[tenant_id]
