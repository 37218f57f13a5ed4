"""The places of a worker: they limit its concurrent attempts, and are shared fairly."""

from __future__ import annotations

import asyncio
from itertools import count

from agentshell.runtime.fair_queue import FairQueue
from kfm.turn.v1.turn_pb2 import Priority


class Places:
    """`most` places, handed out as `FairQueue` says: fair among tenants, then by priority, then by age."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiters = FairQueue[asyncio.Future[None]]()
        self._ages = count()

    async def take(self, tenant_id: str, priority: Priority.ValueType) -> None:
        """Waits for a place and takes it. `give_back` must follow."""
        if self._free:
            self._free -= 1
            self._waiters.begin(tenant_id)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.put(tenant_id, priority, next(self._ages), waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # It got a place at the same time.
                self.give_back(tenant_id)
            raise

    def give_back(self, tenant_id: str) -> None:
        """Returns a place, which goes to the next in line."""
        self._waiters.end(tenant_id)
        self._free += 1
        while self._free and self._waiters:
            of_tenant, waiter = self._waiters.take()
            if not waiter.done():  # Otherwise it has stopped waiting.
                self._free -= 1
                self._waiters.begin(of_tenant)
                waiter.set_result(None)
