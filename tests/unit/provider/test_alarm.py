"""One timer for many waits: it ends the waits it should, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from agentshell.provider.alarm import Alarm

SOON = 0.02


def ring(alarm: Alarm) -> None:
    alarm._ring()  # pyright: ignore[reportPrivateUsage] - at a moment that no clock can arrange


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_wait_ends_when_the_time_is_up_and_the_task_goes_on() -> None:
    alarm = Alarm(time.monotonic() + SOON)
    with pytest.raises(TimeoutError), alarm:
        await for_ever()

    task = asyncio.current_task()
    assert task is not None
    assert (task.cancelling(), alarm.rang) == (0, True)
    with pytest.raises(TimeoutError), alarm:
        pytest.fail("the time is up before this wait begins")


async def test_who_reads_a_generator_is_not_interrupted_between_its_waits() -> None:
    alarm = Alarm(time.monotonic() + 60)

    async def items() -> AsyncGenerator[int]:
        for number in range(2):
            with alarm:
                await asyncio.sleep(0)
            yield number

    reader = items()
    assert await anext(reader) == 0
    ring(alarm)
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await anext(reader)
    alarm.stop()


async def test_who_is_cancelled_stays_so_even_as_the_time_is_up() -> None:
    alarm = Alarm(time.monotonic() + 60)
    waiting = asyncio.Event()

    async def wait() -> None:
        with alarm:
            waiting.set()
            await for_ever()

    task = asyncio.create_task(wait())
    await waiting.wait()
    task.cancel()
    ring(alarm)
    with pytest.raises(asyncio.CancelledError):
        await task
    alarm.stop()


async def test_a_stopped_alarm_rings_no_more() -> None:
    alarm = Alarm(time.monotonic() + SOON / 2)
    alarm.stop()
    with alarm:
        await asyncio.sleep(SOON)
    assert not alarm.rang
