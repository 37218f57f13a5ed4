"""How a member of a group begins again."""

from __future__ import annotations

from agentshell.log.log import Lease, Log


async def rejoin(log: Log, before: Lease) -> Lease:
    """Returns a lease that gives all that is not committed, after `before` has come to an end, or its holder has.

    Joining may give the same lease, which goes on behind what it gave: then the member leaves first. It does not leave
    otherwise: that would end the leases of the others, who would do the same.
    """
    lease = await log.join(before.topic, before.group, before.member)
    if lease != before:
        return lease
    await log.leave(lease)
    return await log.join(before.topic, before.group, before.member)
