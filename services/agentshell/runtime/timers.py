"""When an owner is to look at its turns even if nothing happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_LONGEST_SECONDS = 24 * 3600.0


class Timers:
    """A timer a turn. `up` is called with the turn's id when its time is up, or a day has passed."""

    def __init__(self, up: Callable[[str], None]) -> None:
        self._up = up
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def set(self, turn_id: str, when: float) -> None:
        """Sets the turn's timer, in seconds since 1970, instead of the one that it has."""
        self.cancel(turn_id)
        delay = min(max(0.0, when - time.time()), _LONGEST_SECONDS)
        self._timers[turn_id] = asyncio.get_running_loop().call_later(delay, self._up, turn_id)

    def cancel(self, turn_id: str) -> None:
        """Ends the turn's timer, if it has one."""
        if timer := self._timers.pop(turn_id, None):
            timer.cancel()

    def close(self) -> None:
        """Ends all timers."""
        for timer in self._timers.values():
            timer.cancel()
