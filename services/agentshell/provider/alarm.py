"""Interrupts a call's waits when its time is up, with one timer for all of them."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType


class Alarm:
    """Rings at `deadline`, on the clock of `time.monotonic`. `with alarm:` guards a wait, any number of times.

    It works like `asyncio.timeout_at` at a quarter of the cost: an answer has hundreds of waits. Unlike `timeout_at` it
    is safe in a generator too: it does not interrupt the generator's reader between two waits.
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
        """Cancels the timer."""
        self._timer.cancel()

    def __enter__(self) -> None:
        """Raises TimeoutError if the time is already up."""
        if self.rang:
            raise TimeoutError
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("waits are only guarded within a task")
        self._cancelling = task.cancelling()
        self._task = task

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Raises TimeoutError if the time ran out within the block, unless somebody else cancelled the task too."""
        task, self._task = self._task, None
        if self.rang and task is not None and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _ring(self) -> None:
        self.rang = True
        if self._task is not None:
            self._task.cancel()
