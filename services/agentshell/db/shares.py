"""Bounded shares: limits the places one name holds at once, so that one whose work stalls leaves room for others."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Shares:
    """`most` places for each name. Whoever finds all places of a name taken waits until one is free."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shares = WeakValueDictionary[str, asyncio.Semaphore]()  # Only of names that hold or await places now.

    def of(self, name: str) -> asyncio.Semaphore:
        """Returns the places of a name; `async with` takes one."""
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = asyncio.Semaphore(self._most)
        return share
