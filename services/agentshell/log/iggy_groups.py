"""The groups of a log in Iggy that this process has members in: each is a journal, in a topic of its own.

Iggy has consumer groups, but no generations to fence a commit with, no names of members, and it lets a member keep
its partitions for as long as its connection lives. A journal gives the port's leases exactly; what it costs is that a
process that dies is noticed only when its lease ends, and that a commit is an append and a read.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Mapping
from urllib.parse import quote

from agentshell.log import iggy_group
from agentshell.log.iggy_group import Group
from agentshell.log.iggy_wire import Wire, unavailable
from agentshell.log.log import Lease, Record, StoredRecord, Topic
from agentshell.log.membership import Membership, clock, fenced
from agentshell.mesh.errors import AgentShellError, invalid

SNAPSHOT_ENTRIES = 1000  # How many entries there are from one snapshot to the next.
SEGMENT_BYTES = 16 * 1024 * 1024
MAX_JOURNAL_BYTES = 128 * 1024 * 1024  # Iggy asks for a segment and its largest message, of 64 MiB, at the least.
_READ_ENTRIES = 1000
_IDLE_SECONDS = 0.25


class Journal:
    """One group: writes its entries, folds those of all processes, and keeps the leases of this one."""

    def __init__(self, wire: Wire, name: str, partitions: int, lease_seconds: float) -> None:
        self.process = uuid.uuid4().hex
        self.memberships: dict[Lease, Membership] = {}
        self.group = Group(partitions)
        self._wire = wire
        self._name = name
        self._lease_seconds = lease_seconds
        self._folding = asyncio.Lock()
        self._made = self._restored = False
        self._effects: dict[int, bool] = {}  # Of this process' own entries, until they are asked for.
        self._heard_at: dict[str, float] = {}  # When each member was last seen alive, by this process' clock.
        self._renew_at = self._expel_at = 0.0
        self._following: asyncio.Task[None] | None = None

    async def exists(self) -> bool:
        """Returns whether the group has been made."""
        self._made = self._made or await self._wire.topic(self._name) is not None
        return self._made

    async def make(self) -> None:
        """Makes the group, unless it is there."""
        await self._wire.make_topic(Topic(self._name, 1), segment_bytes=SEGMENT_BYTES, max_bytes=MAX_JOURNAL_BYTES)
        self._made = True

    async def submit(self, entry: bytes) -> bool:
        """Writes an entry, and folds all up to it. Returns whether it has had its effect. Raises LOG_UNAVAILABLE."""
        offset = await self._wire.send(self._name, 0, [Record("group", uuid.uuid4().bytes, entry)])
        await self.fold(offset + 1)
        if offset and offset % SNAPSHOT_ENTRIES == 0:
            await self._wire.send(
                self._name, 0, [Record("group", uuid.uuid4().bytes, iggy_group.snapshot(self.process, self.group))]
            )
        return self._effects.pop(offset, False)

    async def fold(self, least: int = 0) -> None:
        """Folds all entries there are, and at the least those before offset `least`."""
        async with self._folding:
            if not self._restored:
                await self._restore()
            while True:
                entries = await self._wire.poll(self._name, 0, self.group.position, _READ_ENTRIES)
                for stored in entries:
                    self._fold_one(stored)
                if len(entries) < _READ_ENTRIES and self.group.position >= least:
                    break
                if not entries:
                    raise unavailable("read its own entry in the journal of a group")
        for membership in list(self.memberships.values()):
            if membership.lease.generation != self.group.generation:
                self._end(membership)

    def follow(self) -> None:
        """Folds what others write, for as long as this process has members."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow(), name="log group")

    def end_all(self) -> None:
        """Ends all leases of this process, which is another one from now on."""
        self.process = uuid.uuid4().hex
        for membership in list(self.memberships.values()):
            self._end(membership)

    async def close(self) -> None:
        """Gives back what this process holds, where it can."""
        members = [lease.member for lease in self.memberships]
        entry = iggy_group.leave(self.process, members)
        self.end_all()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if members:
            with contextlib.suppress(AgentShellError):  # They fall silent.
                await self.submit(entry)

    def end(self, lease: Lease) -> None:
        """Ends a lease here, if it is not over."""
        if membership := self.memberships.get(lease):
            self._end(membership)

    def _end(self, membership: Membership) -> None:
        self.memberships.pop(membership.lease, None)
        membership.over = True
        membership.bell.ring()

    def _fold_one(self, stored: StoredRecord) -> None:
        entry, at = stored.record.payload, stored.append_time.timestamp()
        effect = self.group.apply(stored.offset, entry, at)
        if iggy_group.author(entry) == self.process:
            self._effects[stored.offset] = effect
            while len(self._effects) > SNAPSHOT_ENTRIES:  # Whoever wrote them has given up.
                del self._effects[next(iter(self._effects))]
        now = clock()
        self._heard_at = {
            name: now if member.seen_at == at else self._heard_at.get(name, now)
            for name, member in self.group.members.items()
        }

    async def _restore(self) -> None:
        """Starts from the last snapshot, for which it looks back from the end, or from the first entry."""
        topic = await self._wire.topic(self._name)
        end = topic.ends[0] if topic else 0
        back = 2 * SNAPSHOT_ENTRIES
        while True:
            start = max(0, end - back)
            entries = await self._entries(start, end)
            if self.group.restore(stored.record.payload for stored in entries):
                break
            if start == 0:
                if entries and entries[0].offset > 0:
                    raise unavailable(f"read the journal {self._name!r} of a group, which has lost its first entries")
                break
            back *= 2
        self._restored = True

    async def _entries(self, start: int, end: int) -> list[StoredRecord]:
        entries: list[StoredRecord] = []
        offset = start
        while offset < end and (read := await self._wire.poll(self._name, 0, offset, _READ_ENTRIES)):
            entries += read
            offset = entries[-1].offset + 1
        return entries

    async def _follow(self) -> None:
        delay = most = min(_IDLE_SECONDS, self._lease_seconds / 6)
        while self.memberships:
            position = self.group.position
            with contextlib.suppress(AgentShellError):  # The leases may be over by it; if not, it goes on.
                await self.fold()
                await self._keep_alive()
            delay = min(delay * 2, most) if position == self.group.position else most / 8
            await asyncio.sleep(delay)

    async def _keep_alive(self) -> None:
        """Renews what is active here, and has those expelled who are silent."""
        now = clock()
        if now >= self._renew_at:
            self._renew_at = now + self._lease_seconds / 3
            active = [
                membership.lease.member
                for membership in self.memberships.values()
                if membership.polling.locked() or membership.active_at > now - self._lease_seconds
            ]
            if active:
                await self.submit(iggy_group.renew(self.process, active))
        if now >= self._expel_at and any(
            now - self._heard_at.get(name, now) > member.lease_seconds for name, member in self.group.members.items()
        ):
            self._expel_at = now + self._lease_seconds / 6
            await self.submit(iggy_group.renew(self.process, []))


class IggyGroups:
    """All groups that this process knows."""

    def __init__(self, wire: Wire, lease_seconds: float) -> None:
        self._wire = wire
        self._lease_seconds = lease_seconds
        self._journals: dict[tuple[str, str], Journal] = {}

    async def join(self, topic: str, partitions: int, group: str, member: str) -> Lease:
        """Makes the member one of the group, unless it is, and returns its lease."""
        journal = self._journal(topic, partitions, group)
        if not await journal.exists():
            await journal.make()
        process = journal.process
        await journal.submit(iggy_group.join(process, member, self._lease_seconds))
        state = journal.group
        known = state.members.get(member)
        ours = known is not None and known.process == process == journal.process
        lease = Lease(topic, group, member, state.generation, known.partitions if known and ours else ())
        if ours and lease not in journal.memberships:
            positions = {partition: state.committed.get(partition, 0) for partition in lease.partitions}
            journal.memberships[lease] = Membership(lease, positions)
        journal.follow()
        return lease

    def membership(self, lease: Lease) -> Membership:
        """Returns the membership of a lease and notes that its holder is active. Raises FENCED."""
        journal = self._journals.get((lease.topic, lease.group))
        membership = journal.memberships.get(lease) if journal else None
        if membership is None:
            raise fenced(lease)
        membership.touch()
        return membership

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        """Commits offsets of partitions of the lease. Raises FENCED and INVALID_REQUEST."""
        self.membership(lease)
        if strangers := offsets.keys() - set(lease.partitions):
            raise invalid(
                "offsets", f"partitions {sorted(strangers)} are not of the lease, which has {lease.partitions}"
            )
        journal = self._journals[lease.topic, lease.group]
        entry = iggy_group.commit(journal.process, lease.member, lease.generation, offsets)
        if not await journal.submit(entry):
            journal.end(lease)
            raise fenced(lease)

    async def leave(self, lease: Lease) -> None:
        """Takes the member out of the group, unless it has joined again since."""
        journal = self._journals.get((lease.topic, lease.group))
        if journal is None:
            return
        journal.end(lease)
        if lease.member not in {other.member for other in journal.memberships}:
            await journal.submit(iggy_group.leave(journal.process, [lease.member]))

    async def committed(self, topic: str, partitions: int, group: str) -> dict[int, int]:
        """Returns the committed offsets of a group; of one that nobody has joined, none."""
        journal = self._journal(topic, partitions, group)
        if not await journal.exists():
            return {}
        await journal.fold()
        return dict(sorted(journal.group.committed.items()))

    def lost(self) -> None:
        """Ends all leases: the connection is gone, and the others may have gone on."""
        for journal in self._journals.values():
            journal.end_all()

    async def close(self) -> None:
        """Gives back what this process holds."""
        await asyncio.gather(*(journal.close() for journal in self._journals.values()))

    def _journal(self, topic: str, partitions: int, group: str) -> Journal:
        if journal := self._journals.get((topic, group)):
            return journal
        name = f"{quote(topic, safe='')}/{quote(group, safe='')}"
        self._journals[topic, group] = Journal(self._wire, name, partitions, self._lease_seconds)
        return self._journals[topic, group]
