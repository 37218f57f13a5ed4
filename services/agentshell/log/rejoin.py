"""Starts a member of a group over."""

from __future__ import annotations

import asyncio

import structlog

from agentshell.log.log import Lease, Log
from agentshell.mesh.errors import AgentShellError

_log = structlog.get_logger("agentshell.log")

_RETRY_SECONDS = 0.5


async def rejoin(log: Log, before: Lease) -> Lease:
    """Returns a lease that gives everything that is not committed, after `before` or its holder has ended.

    Retries until it succeeds. If joining returns the same lease, which continues after what it has given, the member
    leaves first. It does not leave otherwise, as that would end the leases of others, who would then do the same.
    """
    while True:
        try:
            lease = await log.join(before.topic, before.group, before.member)
            if lease != before:
                return lease
            await log.leave(lease)
            return await log.join(before.topic, before.group, before.member)
        except AgentShellError as error:
            _log.warning("cannot join", group=before.group, reason=error.name, message=error.message)
        await asyncio.sleep(_RETRY_SECONDS)
