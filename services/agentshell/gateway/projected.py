"""How far the index has come: what the log has before that need not be read."""

from __future__ import annotations

from collections.abc import Mapping

from agentshell.gateway.recent import Recent
from agentshell.log.log import Log
from agentshell.turn import envelope


class Projected:
    """What projectors have committed, and so saved before, looked up at most once a second."""

    def __init__(self, log: Log) -> None:
        self._committed = Recent(lambda: log.committed(envelope.TURNS, envelope.GATEWAYS))

    async def offsets(self) -> Mapping[int, int]:
        """Returns, by partition, the offset before which every event is in the rows that are read from now on."""
        return await self._committed.get()
