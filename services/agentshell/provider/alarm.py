"""Ends what a call waits for when its time is up: one timer for all its waits."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType


class Alarm:
    """Rings at `deadline`, on the clock of `time.monotonic`. `with alarm:` guards a wait, any number of times.

    As `asyncio.timeout_at`, at a quarter of its price: an answer has hundreds of waits. It is also right where that is
    not, in a generator: who reads it is not interrupted between two waits.
    """

    __slots__ = ("_cancelling", "_loop", "_task", "_timer", "rang")

    def __init__(self, deadline: float) -> None:
        seconds = max(0.0, deadline - time.monotonic())
        self.rang = False
        """Whether the time is up."""
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._ring)

    def stop(self) -> None:
        """Rings no more."""
        self._timer.cancel()

    def __enter__(self) -> None:
        """Raises TimeoutError where the time is up already."""
        if self.rang:
            raise TimeoutError
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("waits are guarded within a task alone")
        self._cancelling = task.cancelling()
        self._task = task

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Raises TimeoutError where the time was up within the block, unless somebody else cancelled it as well."""
        task, self._task = self._task, None
        if self.rang and task is not None and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _ring(self) -> None:
        self.rang = True
        if self._task is not None:
            self._task.cancel()
