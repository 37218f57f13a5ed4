"""Workers that wait for calls. Each serves a single tenant in its life; a spare is kept warm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from agentshell.mesh.errors import AgentShellError
from agentshell.tool.sandbox.worker import Worker

_log = structlog.get_logger("agentshell.tool")


class Pool:
    """At most `size` workers, made by `start`, which may raise SANDBOX_UNAVAILABLE. Each serves `max_calls` calls."""

    def __init__(self, start: Callable[[], Awaitable[Worker]], size: int, max_calls: int) -> None:
        self._start = start
        self._size = size
        self._max_calls = max_calls
        self._callers = asyncio.Semaphore(size)
        self._count = 0  # Of workers that exist, or are starting.
        self._idle: list[Worker] = []  # The longest idle first.
        self._warming: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Ends the workers that wait; those at work end with their calls."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.wait([self._warming])
        while self._idle:
            await self._end(self._idle.pop())

    @asynccontextmanager
    async def worker(self, tenant_id: str) -> AsyncGenerator[Worker]:
        """Yields a worker for one call of a tenant. Waits while all are at work. Raises SANDBOX_UNAVAILABLE."""
        async with self._callers:
            worker = await self._take(tenant_id)
            worker.tenant_id = tenant_id
            self._prepare()
            try:
                yield worker
            finally:
                if worker.spent or worker.call_count >= self._max_calls:
                    await asyncio.shield(self._end(worker))
                else:
                    self._idle.append(worker)

    async def _take(self, tenant_id: str) -> Worker:
        """Returns a worker of the tenant's, else a spare, else a new one, which may replace another tenant's."""
        while True:
            for owner in (tenant_id, ""):
                for worker in self._idle:
                    if worker.tenant_id == owner:
                        self._idle.remove(worker)
                        return worker
            if self._count < self._size:
                return await self._make()
            if self._idle:
                await self._end(self._idle.pop(0))
            elif self._warming is not None:  # The one that is neither idle nor at work: the spare.
                await asyncio.wait([self._warming])

    def _prepare(self) -> None:
        """Starts a spare in the background, if there is none and room for one."""
        warming = self._warming is not None and not self._warming.done()
        if self._count < self._size and not warming and all(worker.tenant_id for worker in self._idle):
            self._warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        try:
            self._idle.append(await self._make())
        except AgentShellError as error:
            _log.warning("no spare worker", message=error.message)  # The next call that needs one says so, too.

    async def _make(self) -> Worker:
        self._count += 1
        try:
            return await self._start()
        except BaseException:
            self._count -= 1
            raise

    async def _end(self, worker: Worker) -> None:
        self._count -= 1
        await worker.kill()
