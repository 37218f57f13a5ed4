"""Where the log was a moment ago: a turn that begins now is not before that."""

from __future__ import annotations

import asyncio
import time

from agentshell.log.log import Log
from agentshell.turn import envelope

_KEPT_SECONDS = 1.0


class Floors:
    """The ends of `agent.turns` and `agent.outputs`, looked up at most once a second."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._looked = asyncio.Lock()
        self._expiry = 0.0
        self._turns: list[int] = []
        self._outputs: list[int] = []

    async def of(self, partition: int) -> tuple[int, int]:
        """Returns offsets in both topics that what is appended from now on will not be below."""
        async with self._looked:
            if time.monotonic() >= self._expiry:
                self._turns = await self._log.end_offsets(envelope.TURNS)
                self._outputs = await self._log.end_offsets(envelope.OUTPUTS)
                self._expiry = time.monotonic() + _KEPT_SECONDS
        return self._turns[partition], self._outputs[partition]
