"""What an owner hears: records of the log, results of steps, timers, turns concluded or parked, failures."""

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
    """What came of an attempt, and what it said last, which goes into the log with it."""

    event: TurnEvent
    said: Sequence[Record] = ()


@dataclass(frozen=True, slots=True)
class Due:
    """Some time of the turn is up."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class Concluded:
    """What the turn's end needs is done."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class Parked:
    """The turn is in the parking place, as it was when its record at `folded_offset` was folded."""

    turn_id: str
    folded_offset: int
    wake_time: datetime


Item = list[StoredRecord] | Made | Due | Concluded | Parked | Exception


class Inbox:
    """What has come and is not taken yet. Bounded by who puts: one item an attempt, a timer, a task or a batch."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._arrived = asyncio.Event()

    def put(self, item: Item) -> None:
        """Adds an item."""
        self._items.append(item)
        self._arrived.set()

    async def take(self, timeout: float | None) -> list[Item]:
        """Returns all that has come, in order; waits for the first, and returns nothing after `timeout` seconds."""
        if not self._items:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
        items, self._items = self._items, []
        return items
