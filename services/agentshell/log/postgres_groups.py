"""Groups in Postgres: who holds which partitions, in which generation, and what is committed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentshell.db.database import Connection, Database
from agentshell.log.assignment import assign
from agentshell.log.log import Lease
from agentshell.log.membership import Membership, clock, fenced
from agentshell.log.peers import Peers
from agentshell.log.postgres_topics import OpenTopic
from agentshell.log.reach import reach
from agentshell.mesh.errors import AgentShellError, invalid

# A member lives as long as its lease and its process. Rows are locked in the order of names, to avoid deadlocks.
_MEMBERS = """
SELECT member, process, partitions,
       lease_until < clock_timestamp() OR process NOT IN (SELECT process FROM log.processes)
FROM log.members WHERE group_id = %s ORDER BY member FOR UPDATE
"""
_WATCH = """
SELECT group_id, generation, coalesce(bool_or(
           lease_until < clock_timestamp() OR process NOT IN (SELECT process FROM log.processes)), false)
FROM log.groups LEFT JOIN log.members USING (group_id) WHERE group_id = ANY (%s) GROUP BY group_id
"""
_RENEW = """
UPDATE log.members m SET lease_until = clock_timestamp() + make_interval(secs => %s)
FROM (
    SELECT group_id, member FROM log.members JOIN unnest(%s::integer[], %s::text[]) a (group_id, member)
    USING (group_id, member) WHERE process = %s ORDER BY group_id, member FOR UPDATE OF members
) mine
WHERE m.group_id = mine.group_id AND m.member = mine.member
"""


@dataclass(slots=True, eq=False, kw_only=True)
class Member(Membership):
    """A membership of a group in Postgres."""

    group_id: int


class PostgresGroups:
    """The groups that this process has members in.

    Any change starts a new generation and ends all leases of the old one. The row of the group is the truth; a commit
    or a change of members locks it.
    """

    def __init__(self, database: Database, peers: Peers, lease_seconds: float) -> None:
        self._database = database
        self._peers = peers
        self._lease_seconds = lease_seconds
        self._memberships: dict[Lease, Member] = {}
        self._generations: dict[int, int] = {}  # The newest known generation of each group.
        self._renew_at = 0.0

    def membership(self, lease: Lease) -> Member:
        """Returns the membership of a lease, and records that its holder is active. Raises FENCED."""
        membership = self._memberships.get(lease)
        if membership is None:
            raise fenced(lease)
        membership.touch()
        return membership

    def check(self, lease: Lease) -> None:
        """Raises FENCED if a lease is over, as far as this process knows."""
        membership = self._memberships.get(lease)
        if membership is None or membership.over:
            raise fenced(lease)

    async def join(self, topic: OpenTopic, group: str, member: str) -> Lease:
        """Adds the member to the group, unless it is in it, and returns its lease."""
        async with reach("join a group"):
            await self._peers.connected()
            async with self._database.transaction() as connection:
                await connection.execute(
                    "INSERT INTO log.groups (topic_id, name) VALUES (%s, %s) ON CONFLICT (topic_id, name) DO NOTHING",
                    (topic.topic_id, group),
                )
                group_id = await _find(connection, topic, group)
                generation, shares = await self._settle(connection, group_id, joining=member)
                committed = await _committed(connection, group_id)
        self.heard_generation(group_id, generation)
        lease = Lease(topic.name, group, member, generation, shares[member])
        # If a newer generation is already known, the lease is over before it begins.
        if lease not in self._memberships and self._generations[group_id] == generation:
            positions = {partition: committed.get(partition, 0) for partition in lease.partitions}
            self._memberships[lease] = Member(lease=lease, positions=positions, group_id=group_id)
        return lease

    async def leave(self, topic: OpenTopic, lease: Lease) -> None:
        """Removes the member from the group, unless it has joined again since."""
        if membership := self._memberships.get(lease):
            self._end(membership)
        holder = (lease.topic, lease.group, lease.member)
        if holder in {(other.topic, other.group, other.member) for other in self._memberships}:
            return
        async with reach("leave a group"), self._database.transaction() as connection:
            group_id = await _find(connection, topic, lease.group)
            generation, _ = await self._settle(connection, group_id, leaving=lease.member)
        self.heard_generation(group_id, generation)

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        """Commits offsets of the lease's partitions. Raises FENCED and INVALID_REQUEST."""
        membership = self.membership(lease)
        if strangers := offsets.keys() - set(lease.partitions):
            raise invalid(
                "offsets", f"partitions {sorted(strangers)} are not in the lease, which has {lease.partitions}"
            )
        async with reach("commit offsets"), self._database.connection() as connection:
            cursor = await connection.execute(
                "SELECT log.commit(%s, %s, %s, %s::integer[], %s::bigint[])",
                (membership.group_id, lease.generation, lease.member, list(offsets), list(offsets.values())),
            )
            (done,) = await cursor.fetchone() or (False,)
        if not done:
            self._end(membership)
            raise fenced(lease)

    async def committed(self, topic: OpenTopic, group: str) -> dict[int, int]:
        """Returns the committed offsets of a group; empty if nobody has joined it."""
        async with reach("read committed offsets"), self._database.connection() as connection:
            cursor = await connection.execute(
                "SELECT partition, next_offset FROM log.commits JOIN log.groups USING (group_id)"
                " WHERE topic_id = %s AND name = %s ORDER BY partition",
                (topic.topic_id, group),
            )
            return dict(await cursor.fetchall())

    async def look(self, connection: Connection) -> None:
        """Renews the leases of active members, detects leases that are over, and frees what dead members hold."""
        if not self._memberships:
            return
        await self._renew(connection)
        group_ids = list({membership.group_id for membership in self._memberships.values()})
        rows = await (await connection.execute(_WATCH, (group_ids,))).fetchall()
        for group_id, generation, has_dead in rows:
            if has_dead:
                # If this fails, another process does it, or this one at the next look.
                with contextlib.suppress(AgentShellError):
                    async with reach("free a dead member's partitions"), self._database.transaction() as settling:
                        generation, _ = await self._settle(settling, group_id)
            self.heard_generation(group_id, generation)

    def heard_generation(self, group_id: int, generation: int) -> None:
        """Ends the leases of older generations of the group."""
        self._generations[group_id] = max(generation, self._generations.get(group_id, 0))
        for membership in list(self._memberships.values()):
            if membership.group_id == group_id and membership.lease.generation < generation:
                self._end(membership)

    def lost(self) -> None:
        """Ends all leases: other processes consider this one dead."""
        self._generations.clear()
        for membership in list(self._memberships.values()):
            self._end(membership)

    def _end(self, membership: Membership) -> None:
        self._memberships.pop(membership.lease, None)
        membership.over = True
        membership.bell.ring()

    async def _renew(self, connection: Connection) -> None:
        now = clock()
        if now < self._renew_at:
            return
        self._renew_at = now + self._lease_seconds / 3
        active = [
            membership
            for membership in self._memberships.values()
            if membership.polling.locked() or membership.active_at > now - self._lease_seconds
        ]
        group_ids = [membership.group_id for membership in active]
        members = [membership.lease.member for membership in active]
        await connection.execute(_RENEW, (self._lease_seconds, group_ids, members, self._peers.process))

    async def _settle(
        self,
        connection: Connection,
        group_id: int,
        *,
        joining: str | None = None,
        leaving: str | None = None,
    ) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Updates the group, within a transaction. Returns its generation and each member's partitions."""
        cursor = await connection.execute(
            "SELECT generation, partitions FROM log.groups JOIN log.topics USING (topic_id)"
            " WHERE group_id = %s FOR UPDATE OF groups",
            (group_id,),
        )
        generation, partitions = await cursor.fetchone() or (0, 0)
        rows = await (await connection.execute(_MEMBERS, (group_id,))).fetchall()
        ours = self._peers.process
        gone = {member for member, of, _, dead in rows if dead or (member, of) == (leaving, ours)}
        held = {member: tuple(share) for member, _, share, _ in rows if member not in gone}
        changed = bool(gone)
        if joining:
            changed |= (joining, ours) not in {(member, of) for member, of, _, _ in rows}
            held.setdefault(joining, ())
            await connection.execute(
                "INSERT INTO log.members (group_id, member, process, lease_until, partitions)"
                " VALUES (%s, %s, %s, clock_timestamp() + make_interval(secs => %s), '{}') ON CONFLICT"
                " (group_id, member) DO UPDATE SET process = excluded.process, lease_until = excluded.lease_until",
                (group_id, joining, ours, self._lease_seconds),
            )
        if not changed:
            return generation, held
        return generation + 1, await _redistribute(connection, group_id, generation + 1, partitions, held)


async def _redistribute(
    connection: Connection,
    group_id: int,
    generation: int,
    partitions: int,
    held: Mapping[str, Sequence[int]],
) -> dict[str, tuple[int, ...]]:
    shares = assign(partitions, held)
    await connection.execute("UPDATE log.groups SET generation = %s WHERE group_id = %s", (generation, group_id))
    await connection.execute(
        "DELETE FROM log.members WHERE group_id = %s AND member <> ALL (%s)", (group_id, list(shares))
    )
    for member, share in shares.items():
        await connection.execute(
            "UPDATE log.members SET partitions = %s::integer[] WHERE group_id = %s AND member = %s",
            (list(share), group_id, member),
        )
    await Peers.tell_generation(connection, group_id, generation)
    return shares


async def _find(connection: Connection, topic: OpenTopic, group: str) -> int:
    cursor = await connection.execute(
        "SELECT group_id FROM log.groups WHERE topic_id = %s AND name = %s", (topic.topic_id, group)
    )
    (group_id,) = await cursor.fetchone() or (0,)
    return group_id


async def _committed(connection: Connection, group_id: int) -> dict[int, int]:
    cursor = await connection.execute("SELECT partition, next_offset FROM log.commits WHERE group_id = %s", (group_id,))
    return dict(await cursor.fetchall())
