"""What an owner receives: log records, outcomes of attempts, timers, concluded or parked turns, failures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from agentshell.log.log import Record, StoredRecord
from kfm.turn.v1.turn_event_pb2 import TurnEvent


@dataclass(frozen=True, slots=True)
class Made:
    """The outcome of an attempt, and its last output records, which are appended with it."""

    event: TurnEvent
    said: Sequence[Record] = ()


@dataclass(frozen=True, slots=True)
class Due:
    """A timer of the turn has expired."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class Concluded:
    """The turn is concluded."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class Parked:
    """The turn is parked, as of its record at `folded_offset`."""

    turn_id: str
    folded_offset: int
    wake_time: datetime


Item = list[StoredRecord] | Made | Due | Concluded | Parked | Exception


class Inbox:
    """Items not taken yet. Bounded by its sources: one item per attempt, timer, task or batch."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._arrived = asyncio.Event()

    def put(self, item: Item) -> None:
        """Adds an item."""
        self._items.append(item)
        self._arrived.set()

    async def take(self, timeout: float | None) -> list[Item]:
        """Waits up to `timeout` seconds for the first item. Returns all items in order, or none."""
        if not self._items:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
        items, self._items = self._items, []
        return items
