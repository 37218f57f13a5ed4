"""The groups of a log in Iggy that this process has members in: each is a journal, in a topic of its own.

Iggy's own consumer groups have no generations to fence commits with and no member names, and let a member keep its
partitions for as long as its connection lives. A journal implements the port's leases exactly, at the cost of an append
and a read per commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from agentshell.log import iggy_group
from agentshell.log.iggy_journal import Journal
from agentshell.log.iggy_wire import Wire
from agentshell.log.log import Lease
from agentshell.log.membership import Membership, clock, fenced
from agentshell.mesh.errors import invalid


class IggyGroups:
    """All groups that this process knows."""

    def __init__(self, wire: Wire, lease_seconds: float) -> None:
        self._wire = wire
        self._lease_seconds = lease_seconds
        self._journals: dict[tuple[str, str], Journal] = {}

    async def join(self, topic: str, partitions: int, group: str, member: str) -> Lease:
        """Adds the member to the group, unless it is in it, and returns its lease."""
        journal = self._journal(topic, partitions, group)
        process, now = await journal.enter(), clock()
        await journal.submit(iggy_group.join(process, member, self._lease_seconds))
        state = journal.group
        known = state.members.get(member)
        ours = known is not None and known.process == process == journal.process
        lease = Lease(topic, group, member, state.generation, known.partitions if known and ours else ())
        if ours and lease not in journal.memberships:
            positions = {partition: state.committed.get(partition, 0) for partition in lease.partitions}
            journal.memberships[lease] = Membership(lease, positions)
        if membership := journal.memberships.get(lease):
            membership.until = now + self._lease_seconds
        journal.follow()
        return lease

    def membership(self, lease: Lease) -> Membership:
        """Returns the membership of a lease, and records that its holder is active. Raises FENCED."""
        journal = self._journals.get((lease.topic, lease.group))
        membership = journal.memberships.get(lease) if journal else None
        if journal is None or membership is None or membership.expired:
            if journal:
                journal.end(lease)
            raise fenced(lease)
        membership.touch()
        return membership

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        """Commits offsets of the lease's partitions. Raises FENCED and INVALID_REQUEST."""
        membership, now = self.membership(lease), clock()
        if strangers := offsets.keys() - set(lease.partitions):
            raise invalid(
                "offsets", f"partitions {sorted(strangers)} are not in the lease, which has {lease.partitions}"
            )
        journal = self._journals[lease.topic, lease.group]
        entry = iggy_group.commit(journal.process, lease.member, lease.generation, offsets)
        if not await journal.submit(entry):
            journal.end(lease)
            raise fenced(lease)
        membership.until = max(membership.until, now + self._lease_seconds)

    async def leave(self, lease: Lease) -> None:
        """Removes the member from the group, unless it has joined again since."""
        journal = self._journals.get((lease.topic, lease.group))
        if journal is None:
            return
        journal.end(lease)
        if lease.member not in {other.member for other in journal.memberships}:
            await journal.submit(iggy_group.leave(journal.process, [lease.member]))

    async def committed(self, topic: str, partitions: int, group: str) -> dict[int, int]:
        """Returns the committed offsets of a group; empty if nobody has joined it."""
        journal = self._journal(topic, partitions, group)
        if not await journal.exists():
            return {}
        await journal.fold()
        return dict(sorted(journal.group.committed.items()))

    def lost(self) -> None:
        """Ends all leases: the connection is gone, and others may have taken over."""
        for journal in self._journals.values():
            journal.end_all()

    async def close(self) -> None:
        """Gives back everything that this process holds."""
        await asyncio.gather(*(journal.close() for journal in self._journals.values()))

    def _journal(self, topic: str, partitions: int, group: str) -> Journal:
        if journal := self._journals.get((topic, group)):
            return journal
        name = f"{quote(topic, safe='')}/{quote(group, safe='')}"
        self._journals[topic, group] = Journal(self._wire, name, partitions, self._lease_seconds)
        return self._journals[topic, group]
