"""How far the groups of a log are behind its end, as a metric."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from prometheus_client import Gauge

from agentshell.log.log import Log
from agentshell.mesh.errors import AgentShellError

LAG_RECORDS: Final = Gauge(
    "agentshell_log_lag_records",
    "Offsets from what a group has committed to the end of a partition.",
    ["topic", "group", "partition"],
)
MEASURE_SECONDS = 5.0


class Lag:
    """Measures groups, each a topic and a group, every few seconds. While the log fails, the last figures stay."""

    def __init__(self, log: Log, groups: Sequence[tuple[str, str]]) -> None:
        self._log = log
        self._groups = groups

    async def measure(self) -> None:
        """Measures once. What a group has committed nothing of, it lags behind whole. Raises LOG_UNAVAILABLE."""
        for topic, group in self._groups:
            committed = await self._log.committed(topic, group)
            # Read after it, so that the end is never before what is committed.
            for partition, end in enumerate(await self._log.end_offsets(topic)):
                LAG_RECORDS.labels(topic, group, str(partition)).set(end - committed.get(partition, 0))

    async def run(self) -> None:
        """Measures again and again, until it is cancelled."""
        while True:
            with contextlib.suppress(AgentShellError):  # Whoever uses the log says so.
                await self.measure()
            await asyncio.sleep(MEASURE_SECONDS)
