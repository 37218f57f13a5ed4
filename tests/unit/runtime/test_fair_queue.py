"""Which of many tenants is next, and who gets a worker's places."""

from __future__ import annotations

import asyncio

import pytest

from agentshell.runtime.fair_queue import FairQueue
from agentshell.runtime.places import Places
from kfm.turn.v1.turn_pb2 import PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_UNSPECIFIED, Priority


def test_the_tenant_with_the_fewest_under_way_is_next() -> None:
    queue = FairQueue[str]()
    queue.begin("busy")
    queue.put("busy", PRIORITY_HIGH, 0, "its urgent one")
    queue.put("idle", PRIORITY_NORMAL, 1, "another's")
    assert queue.take() == ("idle", "another's")
    queue.end("busy")
    assert queue.take() == ("busy", "its urgent one")
    assert not queue


def test_tenants_with_as_much_under_way_take_turns_however_urgent_the_work_of_one_is() -> None:
    queue, ages = FairQueue[str](), iter(range(100))
    for _ in range(3):
        queue.put("flood", PRIORITY_HIGH, next(ages), "")
    queue.put("second", PRIORITY_NORMAL, next(ages), "")
    assert queue.take()[0] == "flood"
    queue.put("third", PRIORITY_NORMAL, next(ages), "")
    assert [queue.take()[0] for _ in range(4)] == ["second", "flood", "third", "flood"]


def test_a_priority_that_is_not_said_is_the_normal_one() -> None:
    queue = FairQueue[str]()
    queue.put("acme", PRIORITY_NORMAL, 1, "later")
    queue.put("acme", PRIORITY_UNSPECIFIED, 0, "earlier")
    assert [queue.take()[1] for _ in range(2)] == ["earlier", "later"]


class Waiting:
    """Tasks that want places, and the order in which they got them."""

    def __init__(self, most: int) -> None:
        self.places = Places(most)
        self.order: list[str] = []

    async def ask(
        self, tenant_id: str, name: str = "", priority: Priority.ValueType = PRIORITY_NORMAL
    ) -> asyncio.Task[None]:
        """Requests a place, and returns once it is given or waited for."""
        task = asyncio.create_task(self._take(tenant_id, name or tenant_id, priority))
        await asyncio.sleep(0)
        return task

    async def give_back(self, tenant_id: str) -> None:
        """Gives a place back, and returns once the next task has it."""
        self.places.give_back(tenant_id)
        await asyncio.sleep(0)

    async def _take(self, tenant_id: str, name: str, priority: Priority.ValueType) -> None:
        await self.places.take(tenant_id, priority)
        self.order.append(name)


async def test_one_who_has_much_to_do_holds_up_no_other() -> None:
    waiting = Waiting(2)
    for _ in range(10):
        await waiting.ask("flood")
    await waiting.ask("flood", "urgent", PRIORITY_HIGH)
    await waiting.ask("small")
    assert waiting.order == ["flood", "flood"]
    for _ in range(3):
        await waiting.give_back("flood")
    assert waiting.order[2:] == ["small", "urgent", "flood"]


async def test_who_waits_no_longer_takes_no_place() -> None:
    waiting = Waiting(1)
    await waiting.ask("acme")
    gone, last = await waiting.ask("acme", "gone"), await waiting.ask("acme", "last")
    gone.cancel()
    await waiting.give_back("acme")
    await last
    assert waiting.order == ["acme", "last"]


async def test_a_place_that_comes_to_who_is_just_cancelled_goes_on_to_the_next() -> None:
    waiting = Waiting(1)
    await waiting.ask("acme")
    gone, last = await waiting.ask("acme", "gone"), await waiting.ask("acme", "last")
    waiting.places.give_back("acme")
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await last
    assert waiting.order == ["acme", "last"]
