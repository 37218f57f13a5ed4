"""The places of a worker: so many attempts at once, and who waits for one gets it in fair shares."""

from __future__ import annotations

import asyncio
from itertools import count

from agentshell.runtime.fair_queue import FairQueue
from kfm.turn.v1.turn_pb2 import Priority


class Places:
    """`most` places. Tenants that wait get them in turn, within a tenant the higher priority, then who came first."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiters = FairQueue[asyncio.Future[None]]()
        self._ages = count()

    async def take(self, tenant_id: str, priority: Priority.ValueType) -> None:
        """Takes a place, once there is one. `give_back` must follow."""
        if self._free:
            self._free -= 1
            self._waiters.begin(tenant_id)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.put(tenant_id, priority, next(self._ages), waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # The place came at the same time.
                self.give_back(tenant_id)
            raise

    def give_back(self, tenant_id: str) -> None:
        """Gives a place back: to who waits and is next."""
        self._waiters.end(tenant_id)
        self._free += 1
        while self._free and self._waiters:
            of_tenant, waiter = self._waiters.take()
            if not waiter.done():  # Else it waits no longer.
                self._free -= 1
                self._waiters.begin(of_tenant)
                waiter.set_result(None)
