"""Retries calls to another service for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc.aio

from agentshell.mesh import call, errors
from agentshell.mesh.call import Principal
from agentshell.mesh.errors import AgentShellError

_TRY_SECONDS = 5.0


async def retry(
    make: Callable[[], Awaitable[object]],
    principal: Principal,
    delays_seconds: Sequence[float],
    is_final: Callable[[AgentShellError], bool],
) -> AgentShellError | None:
    """Makes a call on behalf of a principal, and retries it after each delay while it fails.

    Returns None on success, or else the first final error, or the last error.
    """
    for delay in (*delays_seconds, None):
        try:
            with call.scope(principal, _TRY_SECONDS):
                await make()
            return None
        except grpc.aio.AioRpcError as failed:
            error = errors.of(failed)
        if delay is None or is_final(error):
            return error
        await asyncio.sleep(delay)
    raise AssertionError
