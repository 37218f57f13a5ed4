"""How far the index has come: what the log has before that need not be read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from agentshell.log.log import Log
from agentshell.turn import envelope

_KEPT_SECONDS = 1.0


class Projected:
    """What projectors have committed, and so saved before, looked up at most once a second."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._looked = asyncio.Lock()
        self._expiry = 0.0
        self._offsets: Mapping[int, int] = {}

    async def offsets(self) -> Mapping[int, int]:
        """Returns, by partition, the offset before which every event is in the rows that are read from now on."""
        async with self._looked:
            if time.monotonic() >= self._expiry:
                self._offsets = await self._log.committed(envelope.TURNS, envelope.GATEWAYS)
                self._expiry = time.monotonic() + _KEPT_SECONDS
        return self._offsets
