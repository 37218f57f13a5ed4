"""A lease as its holder's process sees it, whatever the driver."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentshell.log.log import Lease, StoredRecord
from agentshell.log.tail import Bell
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2


def clock() -> float:
    """Returns the time that leases are measured by in this process: that of its event loop."""
    return asyncio.get_running_loop().time()


@dataclass(slots=True, eq=False)
class Membership:
    """A lease: what it has been given, and whether it is over."""

    lease: Lease
    positions: dict[int, int]  # Partition -> the next offset to give.
    active_at: float = field(default_factory=clock)
    until: float = math.inf  # When it is over by this process' clock, unless it is renewed.
    over: bool = False
    bell: Bell = field(default_factory=Bell)  # Rings when it is over.
    polling: asyncio.Lock = field(default_factory=asyncio.Lock)  # One poll of a lease at a time.

    @property
    def expired(self) -> bool:
        """Whether it is over, or should be by now: its process may have stood still."""
        return self.over or clock() > self.until

    def touch(self) -> None:
        """Notes that the holder is active."""
        self.active_at = clock()

    def give(self, records: Sequence[StoredRecord]) -> None:
        """Notes that these are given, and are not to be given again."""
        self.touch()
        for stored in records:
            self.positions[stored.partition] = stored.offset + 1

    def rotated(self) -> list[int]:
        """Returns the partitions, each time beginning with another, so that a busy one does not starve the others."""
        partitions = list(self.positions)
        if partitions:  # A dict keeps its order: the first goes to the end.
            self.positions[partitions[0]] = self.positions.pop(partitions[0])
        return partitions


def fenced(lease: Lease) -> AgentShellError:
    """The error of a lease that is over."""
    return AgentShellError(
        error_pb2.ERROR_REASON_FENCED,
        f"the lease of {lease.member!r} in group {lease.group!r} of topic {lease.topic!r} (generation "
        f"{lease.generation}) is over: join again, and go on from what is committed",
        metadata={"group": lease.group, "generation": str(lease.generation)},
    )
