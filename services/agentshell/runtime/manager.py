"""A manager: a member of the group that owns the partitions of `agent.turns`."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from agentshell.log.log import Lease
from agentshell.log.rejoin import rejoin
from agentshell.mesh import ids
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.owner import Means, Owner
from agentshell.runtime.poison import Poison
from agentshell.turn import envelope
from kfm.error.v1 import error_pb2

_log = structlog.get_logger("agentshell.manager")

_RETRY_SECONDS = 0.5


class Manager:
    """Owns partitions while it runs, under one lease after another."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._log = means.log
        self._poison = Poison(means.log, envelope.MANAGERS)
        self._member = f"manager-{ids.ulid()}"
        self._lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Joins the group and starts."""
        self._lease = await self._log.join(envelope.TURNS, envelope.MANAGERS, self._member)
        self._task = asyncio.create_task(self._run(self._lease), name="manager")

    async def stop(self) -> None:
        """Leaves the group; the next owner continues the open turns."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._means.dispatch.close()
        if self._lease is not None:
            with contextlib.suppress(AgentShellError):
                await self._log.leave(self._lease)

    async def _run(self, lease: Lease) -> None:
        while True:
            try:
                await Owner(self._means, lease, self._poison).run()
            except AgentShellError as error:
                level = "info" if error.reason == error_pb2.ERROR_REASON_FENCED else "warning"
                getattr(_log, level)("lease over", reason=error.name, message=error.message)
            except Exception:
                # A defect. The only state known to be right is one folded from the log again.
                _log.exception("owner failed")
                await asyncio.sleep(_RETRY_SECONDS)
            lease = self._lease = await rejoin(self._log, lease)
