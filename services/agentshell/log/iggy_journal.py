"""The journal of a group in Iggy, as one process writes and folds it, and that process's leases."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from agentshell.log import iggy_group
from agentshell.log.iggy_group import Group
from agentshell.log.iggy_presence import STRANGE_SECONDS, Presence
from agentshell.log.iggy_wire import Wire, unavailable
from agentshell.log.log import Lease, Record, StoredRecord, Topic
from agentshell.log.membership import Membership, clock
from agentshell.mesh.errors import AgentShellError

SNAPSHOT_ENTRIES = 1000  # How many entries lie between snapshots.
SEGMENT_BYTES = 16 * 1024 * 1024
MAX_JOURNAL_BYTES = 128 * 1024 * 1024  # Iggy requires at least a segment and its largest message, 64 MiB.
WATCH_SECONDS = 0.1  # Entries and deaths of others are noticed within this.
ALONE_SECONDS = 30.0  # How often a lone process looks for remains of ended ones.
_READ_ENTRIES = 1000


class Journal:
    """One group: writes this process's entries, folds those of all, and keeps this process's leases."""

    def __init__(self, wire: Wire, name: str, partitions: int, lease_seconds: float) -> None:
        self.process = uuid.uuid4().hex  # The id that others see; a new one for each connection.
        self.memberships: dict[Lease, Membership] = {}
        self.group = Group(partitions)
        self._wire = wire
        self._name = name
        self._lease_seconds = lease_seconds
        self._presence = Presence(wire, name)
        self._folding = asyncio.Lock()
        self._folded_at = 0.0
        self._made = self._restored = False
        self._effects: dict[int, bool] = {}  # Of this process's own entries, by offset, until read.
        self._heard_at: dict[str, float] = {}  # When each member was last seen alive, by this process's clock.
        self._renew_at = self._expel_at = self._look_at = 0.0
        self._following: asyncio.Task[None] | None = None

    async def exists(self) -> bool:
        """Returns whether the group has been created."""
        self._made = self._made or await self._wire.topic(self._name) is not None
        return self._made

    async def enter(self) -> str:
        """Creates the group if necessary, makes this process visible in it, and returns the process's id."""
        if not await self.exists():
            await self._wire.make_topic(Topic(self._name, 1), segment_bytes=SEGMENT_BYTES, max_bytes=MAX_JOURNAL_BYTES)
            self._made = True
        process = self.process
        if process not in self.group.processes or clock() - self._folded_at > STRANGE_SECONDS / 2:
            await self._presence.enter(process)
        return process

    async def submit(self, entry: bytes) -> bool:
        """Writes an entry and folds everything up to it. Returns whether it took effect. Raises LOG_UNAVAILABLE."""
        offset = await self._wire.send(self._name, 0, [Record("group", uuid.uuid4().bytes, entry)])
        await self.fold(offset + 1)
        if offset and offset % SNAPSHOT_ENTRIES == 0:
            await self._wire.send(
                self._name, 0, [Record("group", uuid.uuid4().bytes, iggy_group.snapshot(self.process, self.group))]
            )
        return self._effects.pop(offset, False)

    async def fold(self, least: int = 0) -> None:
        """Folds all entries there are, and at least those before offset `least`."""
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
            self._folded_at = clock()
        for membership in list(self.memberships.values()):
            if membership.lease.generation != self.group.generation:
                self._end(membership)

    def follow(self) -> None:
        """Starts folding what others write, for as long as this process has members."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow(), name="log group")

    def end_all(self) -> None:
        """Ends all leases of this process, which gets a new id."""
        self.process = uuid.uuid4().hex
        for membership in list(self.memberships.values()):
            self._end(membership)

    async def close(self) -> None:
        """Gives back what this process holds, if it can."""
        process, members = self.process, [lease.member for lease in self.memberships]
        self.end_all()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        with contextlib.suppress(AgentShellError):  # Others then notice its end or its silence.
            if members:
                await self.submit(iggy_group.leave(process, members))
            await self._presence.leave()

    def end(self, lease: Lease) -> None:
        """Ends a lease in this process, if it is not over."""
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
            while len(self._effects) > SNAPSHOT_ENTRIES:  # Their writers have given up.
                del self._effects[next(iter(self._effects))]
        now = clock()
        self._heard_at = {
            name: now if member.seen_at == at else self._heard_at.get(name, now)
            for name, member in self.group.members.items()
        }

    async def _restore(self) -> None:
        """Starts from the last snapshot, searching backwards from the end, or from the first entry."""
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
        while self.memberships:
            with contextlib.suppress(AgentShellError):  # Leases may expire; otherwise retry.
                await self.fold()
                await self._expel_gone()
                await self._keep_alive()
            for membership in list(self.memberships.values()):
                if membership.expired:
                    self._end(membership)
            await asyncio.sleep(min(WATCH_SECONDS, self._lease_seconds / 6))

    async def _expel_gone(self) -> None:
        """Expels the members of processes that have ended. If this process is missing itself, it starts over."""
        processes, now = self.group.processes, clock()
        if processes <= {self.process} and now < self._look_at:
            return
        self._look_at = now + ALONE_SECONDS
        missing = await self._presence.missing(processes)
        if self.process in missing:
            self.end_all()
        elif missing:
            await self.fold()  # Another process may have reported it already.
            if missing & self.group.processes:
                await self.submit(iggy_group.gone(self.process, sorted(missing)))

    async def _keep_alive(self) -> None:
        """Renews the leases that are active here, and expels silent members."""
        now = clock()
        if now >= self._renew_at:
            self._renew_at = now + self._lease_seconds / 3
            active = [
                membership
                for membership in self.memberships.values()
                if membership.polling.locked() or membership.active_at > now - self._lease_seconds
            ]
            if active:
                await self.submit(iggy_group.renew(self.process, [membership.lease.member for membership in active]))
                for membership in active:
                    membership.until = now + self._lease_seconds
        if now >= self._expel_at and any(
            now - self._heard_at.get(name, now) > member.lease_seconds for name, member in self.group.members.items()
        ):
            self._expel_at = now + self._lease_seconds / 6
            await self.submit(iggy_group.renew(self.process, []))
