"""Where the log ended a moment ago: a turn that begins now is not before that."""

from __future__ import annotations

from agentshell.gateway.recent import Recent
from agentshell.log.log import Log
from agentshell.turn import envelope


class Floors:
    """The ends of `agent.turns` and `agent.outputs`, looked up at most once a second."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._ends = Recent(self._look)

    async def of(self, partition: int) -> tuple[int, int]:
        """Returns lower bounds, in both topics, for the offsets of whatever is appended from now on."""
        turns, outputs = await self._ends.get()
        return turns[partition], outputs[partition]

    async def _look(self) -> tuple[list[int], list[int]]:
        return await self._log.end_offsets(envelope.TURNS), await self._log.end_offsets(envelope.OUTPUTS)
