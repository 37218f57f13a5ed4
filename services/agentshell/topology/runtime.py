"""A manager with a worker of its own: steps are handed over by a call, not written to the log a second time."""

from __future__ import annotations

from agentshell.runtime.dispatch import LocalDispatch
from agentshell.topology.manager import new_manager
from agentshell.topology.parts import Member, Parts
from agentshell.topology.worker import new_worker


async def build(parts: Parts) -> Member:
    """Builds a manager and its worker."""
    worker = await new_worker(parts)
    manager = await new_manager(parts, LocalDispatch(worker))

    async def stop(seconds: float) -> None:
        await worker.drain(seconds)
        await manager.stop()

    return Member(start=manager.start, stop=stop)
