"""Slots: a bound on calls, a bounded queue in order, and no slot lost when a waiter leaves."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.slots import Slots
from kfm.error.v1 import error_pb2


async def settle() -> None:
    """Lets every runnable task run: here tasks wait only for slots."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_beyond_the_queue_a_call_is_refused_with_how_long_to_wait() -> None:
    slots = Slots("openai#1", 1, 1)
    await slots.take()
    waiting = asyncio.create_task(slots.take())
    await settle()

    with pytest.raises(AgentShellError) as caught:
        await slots.take()

    assert caught.value.reason == error_pb2.ERROR_REASON_OVERLOADED
    assert caught.value.retry_delay == timedelta(seconds=1)
    assert caught.value.metadata == {"endpoint": "openai#1", "calls": "1", "waiting": "1"}
    slots.give_back()
    await waiting
    assert (slots.in_use, slots.waiting) == (1, 0)


async def test_who_is_cancelled_leaves_the_queue_to_another() -> None:
    slots = Slots("x", 1, 1)
    await slots.take()
    first = asyncio.create_task(slots.take())
    await settle()
    first.cancel()
    await settle()

    second = asyncio.create_task(slots.take())
    await settle()
    slots.give_back()
    await second
    assert (slots.in_use, slots.waiting) == (1, 0)


async def test_a_slot_given_to_a_call_that_is_cancelled_at_that_moment_goes_to_the_next() -> None:
    slots = Slots("x", 1, 2)
    await slots.take()
    first, second = (asyncio.create_task(slots.take()) for _ in range(2))
    await settle()

    slots.give_back()  # To the first, which has not run yet.
    first.cancel()
    await settle()

    assert (first.cancelled(), second.done(), slots.in_use) == (True, True, 1)


async def test_a_slot_given_back_as_the_first_in_line_is_cancelled_goes_to_the_next() -> None:
    slots = Slots("x", 1, 2)
    await slots.take()
    first, second = (asyncio.create_task(slots.take()) for _ in range(2))
    await settle()

    first.cancel()
    slots.give_back()  # The first is cancelled, but has not run yet.
    await settle()

    assert (first.cancelled(), second.done(), slots.in_use) == (True, True, 1)


MOVES = st.lists(st.tuples(st.sampled_from(["take", "give_back", "cancel", "settle"]), st.integers(0, 9)), max_size=60)


@given(MOVES, st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=150)
def test_any_calls_are_served_in_order_and_lose_no_slot(
    moves: list[tuple[str, int]], size: int, queue_size: int
) -> None:
    asyncio.run(_play(moves, size, queue_size))


async def _play(moves: list[tuple[str, int]], size: int, queue_size: int) -> None:
    slots = Slots("x", size, queue_size)
    tasks: list[asyncio.Task[None]] = []
    served: list[int] = []
    held = 0

    async def call(number: int) -> None:
        nonlocal held
        has_waited = slots.is_full
        await slots.take()
        held += 1
        if has_waited:
            served.append(number)

    for kind, number in moves:
        if kind == "take":
            tasks.append(asyncio.create_task(call(len(tasks))))
        elif kind == "give_back" and held:
            held -= 1
            slots.give_back()
        elif kind == "cancel" and tasks:
            tasks[number % len(tasks)].cancel()
        else:
            await settle()
        assert held <= slots.in_use <= size
        assert slots.waiting <= queue_size
        assert slots.is_full or not slots.waiting

    await settle()
    while held:
        held -= 1
        slots.give_back()
        await settle()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert (slots.in_use, slots.waiting) == (0, 0)
    assert served == sorted(served)
    assert {type(result) for result in results} <= {type(None), AgentShellError, asyncio.CancelledError}
