"""Detects which processes of a group are alive from their connections to Iggy: at once if the kernel closes them.

Each process joins one of Iggy's own consumer groups on the journal, named after the process, over the connection that
it writes the journal with. It polls nothing. A machine that dies closes no connection: its leases end by silence. So do
those of a process that dies while the server is down, because the restarted server still counts the old connection.
"""

from __future__ import annotations

from collections.abc import Collection

from agentshell.log.iggy_wire import Wire
from agentshell.log.membership import clock

# A process without members has ended, or has just started and is about to write its first entry.
STRANGE_SECONDS = 10.0


class Presence:
    """The processes of one journal."""

    def __init__(self, wire: Wire, journal: str) -> None:
        self._wire = wire
        self._journal = journal
        self._entered = ""
        self._strange_at: dict[str, float] = {}  # When each stranger was first seen.

    async def enter(self, process: str) -> None:
        """Makes this process visible until its connection ends. Raises LOG_UNAVAILABLE."""
        await self._wire.enter(self._journal, process)
        self._entered = process

    async def leave(self) -> None:
        """Removes this process's consumer group. Raises LOG_UNAVAILABLE."""
        if self._entered:
            await self._wire.remove_group(self._journal, self._entered)

    async def missing(self, processes: Collection[str]) -> set[str]:
        """Returns those of the processes that have ended. Raises LOG_UNAVAILABLE."""
        present = await self._wire.groups(self._journal)
        now = clock()
        self._strange_at = {name: self._strange_at.get(name, now) for name in present if name not in processes}
        for name, since in self._strange_at.items():
            if now - since > STRANGE_SECONDS:
                await self._wire.remove_group(self._journal, name)
                break  # One at a time, to stay fast.
        return {process for process in processes if not present.get(process)}
