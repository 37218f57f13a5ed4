"""The generations under way in this process, so that a repeat of a request joins its first run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from agentshell.mesh.errors import request_id_reused
from agentshell.provider.adapters.adapter import Deltas, Tell, tell_nobody
from kfm.provider.v1.provider_service_pb2 import GenerateResponse

# How long deltas wait, after others were read, for more to join them: a message costs more than its words. It is too
# short for the eye to see, and a model that takes longer from word to word is not held back at all.
PACE_SECONDS = 0.005

Work: TypeAlias = Callable[[Tell], Coroutine[Any, Any, GenerateResponse]]


@dataclass(frozen=True, slots=True)
class Request:
    """Whose request it is, and a digest of what it asks. Without an id nothing joins it."""

    tenant_id: str
    request_id: str
    digest: bytes


@dataclass(eq=False, slots=True)
class _Run:
    request: Request
    task: asyncio.Task[GenerateResponse] = field(init=False)
    # All deltas, for followers that join later. Bounded, as an answer is.
    deltas: Deltas = field(default_factory=Deltas)
    followers: set[Follower] = field(default_factory=set["Follower"])

    def tell(self, deltas: Deltas) -> None:
        self.deltas += deltas
        for follower in self.followers:
            follower.grown()


class Follower:
    """A reader of a run, from its beginning to its end."""

    __slots__ = ("_news", "_read", "_rest", "_run")

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._read = 0
        self._news = asyncio.Event()
        self._rest: asyncio.TimerHandle | None = None
        self.grown()

    async def read(self) -> tuple[Deltas, GenerateResponse | None]:
        """Returns the run's deltas since the last read and, at its end, the answer. Raises what the run raises.

        Returns as soon as there is any, but not within PACE_SECONDS of the last content unless the run ends.
        """
        await self._news.wait()
        task, deltas = self._run.task, self._run.deltas[self._read :]
        self._read += len(deltas)
        if not task.done():
            self._news.clear()
            if not all(delta.HasField("usage") for delta in deltas):
                self._rest = asyncio.get_running_loop().call_later(PACE_SECONDS, self._rested)
        elif not deltas or not _has_failed(task):
            return deltas, task.result()
        return deltas, None

    async def answer(self) -> GenerateResponse:
        """Returns the run's answer, without reading its deltas. Raises what the run raises."""
        await asyncio.wait([self._run.task])
        return self._run.task.result()

    def grown(self) -> None:
        """Notes that the run has new deltas."""
        if self._rest is None and self._read < len(self._run.deltas):
            self._news.set()

    def ended(self) -> None:
        """Notes that the run has ended."""
        self._news.set()

    def leave(self) -> None:
        """Stops following the run."""
        if self._rest is not None:
            self._rest.cancel()

    def _rested(self) -> None:
        self._rest = None
        self.grown()


class Runs:
    """At most one run for each request. It outlives whoever began it, and is cancelled once nobody follows it."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], _Run] = {}  # By tenant and request id.
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def follow(self, request: Request, work: Work) -> Generator[Follower]:
        """Follows the request's run within the block, and begins one if there is none. Raises REQUEST_ID_REUSED."""
        run = self._join(request, work)
        follower = Follower(run)
        run.followers.add(follower)
        try:
            yield follower
        finally:
            follower.leave()
            run.followers.discard(follower)
            if not run.followers:
                run.task.cancel()
                self._forget(run)

    async def answer(self, request: Request, work: Work) -> GenerateResponse:
        """Returns the answer of the request's run, without its deltas. Raises what `work` raises."""
        if request.request_id:
            with self.follow(request, work) as follower:
                return await follower.answer()
        # Nobody can join it: it needs no task of its own.
        own = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(own)
        try:
            return await work(tell_nobody)
        finally:
            self._tasks.discard(own)

    async def close(self) -> None:
        """Cancels all runs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _join(self, request: Request, work: Work) -> _Run:
        run = self._runs.get((request.tenant_id, request.request_id))
        if run is not None and run.request.digest != request.digest:
            raise request_id_reused(request.request_id)
        if run is None:
            run = _Run(request)
            run.task = asyncio.create_task(work(run.tell))
            self._tasks.add(run.task)
            run.task.add_done_callback(lambda task: self._end(run, task))
            if request.request_id:
                self._runs[request.tenant_id, request.request_id] = run
        return run

    def _end(self, run: _Run, task: asyncio.Task[GenerateResponse]) -> None:
        self._tasks.discard(task)
        self._forget(run)
        if not task.cancelled():
            task.exception()  # Marks it as seen: its followers raise it, and there may be none.
        for follower in run.followers:
            follower.ended()

    def _forget(self, run: _Run) -> None:
        key = (run.request.tenant_id, run.request.request_id)
        if self._runs.get(key) is run:
            del self._runs[key]


def _has_failed(task: asyncio.Task[GenerateResponse]) -> bool:
    return task.cancelled() or task.exception() is not None
