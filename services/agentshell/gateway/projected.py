"""How far the index has come: earlier records need not be read from the log."""

from __future__ import annotations

from collections.abc import Mapping

from agentshell.gateway.recent import Recent
from agentshell.log.log import Log
from agentshell.turn import envelope


class Projected:
    """The offsets that projectors have committed after saving, looked up at most once a second."""

    def __init__(self, log: Log) -> None:
        self._committed = Recent(lambda: log.committed(envelope.TURNS, envelope.GATEWAYS))

    async def offsets(self) -> Mapping[int, int]:
        """Returns, by partition, the offset below which rows read from now on include every event."""
        return await self._committed.get()
