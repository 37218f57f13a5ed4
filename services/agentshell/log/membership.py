"""A lease as seen by its holder's process, in any driver."""

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
    """Returns the time by which this process measures leases: that of its event loop."""
    return asyncio.get_running_loop().time()


@dataclass(slots=True, eq=False)
class Membership:
    """A lease: what it has been given, and whether it is over."""

    lease: Lease
    positions: dict[int, int]  # Partition -> the next offset to give.
    active_at: float = field(default_factory=clock)
    until: float = math.inf  # When it ends by this process's clock, unless renewed.
    over: bool = False
    bell: Bell = field(default_factory=Bell)  # Rings when it is over.
    polling: asyncio.Lock = field(default_factory=asyncio.Lock)  # One poll of a lease at a time.

    @property
    def expired(self) -> bool:
        """Whether it is over, or should be by now: its process may have been suspended."""
        return self.over or clock() > self.until

    def touch(self) -> None:
        """Records that the holder is active."""
        self.active_at = clock()

    def give(self, records: Sequence[StoredRecord]) -> None:
        """Records that these have been given, so that they are not given again."""
        self.touch()
        for stored in records:
            self.positions[stored.partition] = stored.offset + 1

    def rotated(self) -> list[int]:
        """Returns the partitions, starting with the next one each time, so that a busy one does not starve the rest."""
        partitions = list(self.positions)
        if partitions:  # A dict keeps insertion order: moves the first to the end.
            self.positions[partitions[0]] = self.positions.pop(partitions[0])
        return partitions


def fenced(lease: Lease) -> AgentShellError:
    """Returns the error of a lease that is over."""
    return AgentShellError(
        error_pb2.ERROR_REASON_FENCED,
        f"the lease of {lease.member!r} in group {lease.group!r} of topic {lease.topic!r} (generation "
        f"{lease.generation}) has ended: join again, and continue from the committed offsets",
        metadata={"group": lease.group, "generation": str(lease.generation)},
    )
