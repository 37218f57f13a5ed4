"""A metric of how far the groups of a log lag behind its end."""

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
    """Measures (topic, group) pairs every few seconds. While the log fails, the last values stay."""

    def __init__(self, log: Log, groups: Sequence[tuple[str, str]]) -> None:
        self._log = log
        self._groups = groups

    async def measure(self) -> None:
        """Measures once. A partition without a commit counts from offset 0. Raises LOG_UNAVAILABLE."""
        for topic, group in self._groups:
            committed = await self._log.committed(topic, group)
            # Read second, so that the end is never before the committed offset.
            for partition, end in enumerate(await self._log.end_offsets(topic)):
                LAG_RECORDS.labels(topic, group, str(partition)).set(end - committed.get(partition, 0))

    async def run(self) -> None:
        """Measures periodically until cancelled."""
        while True:
            with contextlib.suppress(AgentShellError):  # Users of the log report the failure.
                await self.measure()
            await asyncio.sleep(MEASURE_SECONDS)
