"""Limits an endpoint's concurrent calls: the others wait in order, and beyond a bound they are refused."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import timedelta

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

RETRY_SECONDS = 1.0


class Slots:
    """Slots for `size` calls at once, with at most `queue_size` waiting."""

    __slots__ = ("_free", "_label", "_queue", "_queue_size", "_size")

    def __init__(self, label: str, size: int, queue_size: int) -> None:
        self._label = label
        self._size = size
        self._queue_size = queue_size
        self._free = size
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()  # By arrival; a cancelled call leaves.

    @property
    def in_use(self) -> int:
        """Calls under way."""
        return self._size - self._free

    @property
    def is_full(self) -> bool:
        """Whether the next call would have to wait."""
        return self._free == 0

    @property
    def waiting(self) -> int:
        """Calls waiting."""
        return len(self._queue)

    def try_take(self) -> bool:
        """Takes a slot if one is free, in which case nobody is waiting for one."""
        if self.is_full:
            return False
        self._free -= 1
        return True

    async def take(self) -> None:
        """Takes a slot, waiting until one is free. Raises OVERLOADED if too many wait already."""
        if self.try_take():
            return
        if len(self._queue) >= self._queue_size:
            raise self._overloaded()
        turn = asyncio.get_running_loop().create_future()
        self._queue[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            self._queue.pop(turn, None)
            if not turn.cancelled():  # It was given a slot at the same moment.
                self.give_back()
            raise

    def give_back(self) -> None:
        """Gives a slot back: to whoever has waited longest, if anybody waits."""
        while self._queue:
            turn, _ = self._queue.popitem(last=False)
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1

    def _overloaded(self) -> AgentShellError:
        return AgentShellError(
            error_pb2.ERROR_REASON_OVERLOADED,
            f"endpoint {self._label} has {self._size} calls running and {self._queue_size} waiting: ask again "
            "later, or raise its vendor's max_concurrent_calls or max_waiting_calls",
            metadata={"endpoint": self._label, "calls": str(self._size), "waiting": str(self._queue_size)},
            retry_delay=timedelta(seconds=RETRY_SECONDS),
        )
