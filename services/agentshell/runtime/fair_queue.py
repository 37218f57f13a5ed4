"""What waits, of many tenants: one that has much to do does not hold up the others. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Generic, TypeVar

from kfm.turn.v1.turn_pb2 import PRIORITY_NORMAL, PRIORITY_UNSPECIFIED, Priority

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items that wait, and how many of each tenant are under way.

    Next is the tenant with the fewest under way, of those the one that was next the longest ago; within a tenant the
    higher priority, then the older item: `age` tells them apart, the lowest first.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[int, int, T]]] = {}  # tenant -> heap; who was next goes last
        self._under_way = Counter[str]()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, tenant_id: str, priority: Priority.ValueType, age: int, item: T) -> None:
        """Has an item wait."""
        level = PRIORITY_NORMAL if priority == PRIORITY_UNSPECIFIED else priority
        heapq.heappush(self._waiting.setdefault(tenant_id, []), (-level, age, item))

    def take(self) -> tuple[str, T]:
        """Returns the item that is next, and its tenant; it waits no longer. There must be one."""
        tenant_id = min(self._waiting, key=self._under_way.__getitem__)
        heap = self._waiting.pop(tenant_id)
        *_, item = heapq.heappop(heap)
        if heap:
            self._waiting[tenant_id] = heap
        return tenant_id, item

    def begin(self, tenant_id: str) -> None:
        """Says that something of a tenant is under way, whether it waited or not."""
        self._under_way[tenant_id] += 1

    def end(self, tenant_id: str) -> None:
        """Says that something of a tenant is under way no longer."""
        self._under_way[tenant_id] -= 1
        if not self._under_way[tenant_id]:
            del self._under_way[tenant_id]
