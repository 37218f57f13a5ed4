"""Bounded shares: a name holds at most so many places at once, so that one whose work stalls leaves room for others."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Shares:
    """`most` places for each name. Whoever finds all of its own taken waits until one is free."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shares = WeakValueDictionary[str, asyncio.Semaphore]()  # Of those who have or want places now.

    def of(self, name: str) -> asyncio.Semaphore:
        """Returns the places of a name: `async with` it holds one."""
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = asyncio.Semaphore(self._most)
        return share
