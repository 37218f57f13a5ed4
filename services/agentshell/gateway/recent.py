"""A value that is looked up at most once a second, however many callers ask for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_KEPT_SECONDS = 1.0

T = TypeVar("T")


class Recent(Generic[T]):
    """What `look` returned within the last second. Callers that ask during a look-up wait for that one."""

    def __init__(self, look: Callable[[], Awaitable[T]]) -> None:
        self._look = look
        self._looking = asyncio.Lock()
        self._kept: tuple[T, float] | None = None  # The value, and when to look it up again.

    async def get(self) -> T:
        """Returns the value. Raises what `look` raises; the next caller then looks again."""
        async with self._looking:
            if self._kept is None or time.monotonic() >= self._kept[1]:
                self._kept = await self._look(), time.monotonic() + _KEPT_SECONDS
            return self._kept[0]
