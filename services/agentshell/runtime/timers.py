"""Timers by which an owner looks at its turns even if nothing happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# The loop's clock may drift from the calendar's: long timers are reset once a day.
_LONGEST_SECONDS = 24 * 3600.0


class Timers:
    """One timer per turn. `up` is called with the turn's id when it expires."""

    def __init__(self, up: Callable[[str], None]) -> None:
        self._up = up
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def set(self, turn_id: str, when: float) -> None:
        """Sets the turn's timer, in seconds since 1970; it replaces any earlier one."""
        self.cancel(turn_id)
        loop, delay = asyncio.get_running_loop(), max(0.0, when - time.time())
        if delay > _LONGEST_SECONDS:
            self._timers[turn_id] = loop.call_later(_LONGEST_SECONDS, self.set, turn_id, when)
        else:
            self._timers[turn_id] = loop.call_later(delay, self._up, turn_id)

    def cancel(self, turn_id: str) -> None:
        """Cancels the turn's timer, if it has one."""
        if timer := self._timers.pop(turn_id, None):
            timer.cancel()

    def close(self) -> None:
        """Cancels all timers."""
        for timer in self._timers.values():
            timer.cancel()
