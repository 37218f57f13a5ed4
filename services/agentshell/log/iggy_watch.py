"""Detects what other processes append to topics in Iggy, which has no notifications, by asking while anybody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from agentshell.log.iggy_lane import Lane
from agentshell.log.iggy_wire import Wire
from agentshell.mesh.errors import AgentShellError

# The interval between looks, which doubles while nothing changes. A look is one small request for all topics, and one
# more for each that has changed.
MIN_LOOK_SECONDS = 0.005
MAX_LOOK_SECONDS = 0.04


class Watch:
    """Watches the topics in `lanes`, to which more may be added, and tells the lanes how far they have grown."""

    def __init__(self, wire: Wire, lanes: Mapping[str, Sequence[Lane]]) -> None:
        self._wire = wire
        self._lanes = lanes
        self._counts: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts watching, until nobody waits."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="log watch")

    async def close(self) -> None:
        """Stops watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        delay_seconds = MIN_LOOK_SECONDS
        while awaited := [name for name, lanes in self._lanes.items() if any(lane.bell.awaited for lane in lanes)]:
            try:
                changed = await self._look(awaited)
            except AgentShellError:  # Those who wait find out for themselves.
                changed = False
                for name in awaited:
                    for lane in self._lanes[name]:
                        lane.bell.ring()
            delay_seconds = MIN_LOOK_SECONDS if changed else min(2 * delay_seconds, MAX_LOOK_SECONDS)
            await asyncio.sleep(delay_seconds)

    async def _look(self, names: Sequence[str]) -> bool:
        counts = await self._wire.counts()
        changed = [name for name in names if name in counts and counts[name] != self._counts.get(name)]
        for name in changed:
            if topic := await self._wire.topic(name):
                for lane, end in zip(self._lanes[name], topic.ends, strict=True):
                    lane.grow(end)
            self._counts[name] = counts[name]
        return bool(changed)
