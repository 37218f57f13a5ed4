"""When an owner must look at a turn."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentshell.runtime import timers
from agentshell.runtime.timers import Timers

BOUND_SECONDS = 30.0


async def test_who_waits_for_longer_than_a_timer_lasts_is_not_looked_at_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "_LONGEST_SECONDS", 0.01)
    up = asyncio.Queue[str]()
    made = Timers(up.put_nowait)
    end = time.time() + 0.5
    made.set("later", end)
    made.set("sooner", end - 0.25)
    made.set("never", end - 0.25)
    made.cancel("never")
    async with asyncio.timeout(BOUND_SECONDS):
        assert {await up.get(), await up.get()} == {"sooner", "later"}
    assert time.time() > end - 0.1, "the loop's clock is not the calendar's, but much like it"
    made.close()
