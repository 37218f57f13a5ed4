"""The generations that run in this process, so that a request that is repeated meanwhile joins its first run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from agentshell.mesh.errors import request_id_reused
from kfm.provider.v1.provider_service_pb2 import GenerateResponse, GenerationDelta

Tell: TypeAlias = Callable[[list[GenerationDelta]], None]
Work: TypeAlias = Callable[[Tell], Coroutine[Any, Any, GenerateResponse]]


@dataclass(frozen=True, slots=True)
class Request:
    """Whose request it is, and what it asks. Without an id nothing joins it."""

    tenant_id: str
    request_id: str
    digest: bytes


@dataclass(eq=False, slots=True)
class _Run:
    request: Request
    task: asyncio.Task[GenerateResponse] = field(init=False)
    # All of them, for those who join later: an answer is bounded, and so is this.
    deltas: list[GenerationDelta] = field(default_factory=list[GenerationDelta])
    followers: set[asyncio.Event] = field(default_factory=set[asyncio.Event])

    def tell(self, deltas: list[GenerationDelta]) -> None:
        self.deltas += deltas
        self.wake()

    def wake(self) -> None:
        for grown in self.followers:
            grown.set()


class Runs:
    """At most one run for each request. It goes on without who began it, and is cancelled when nobody follows it."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], _Run] = {}  # By tenant and request id.
        self._tasks: set[asyncio.Task[Any]] = set()

    async def follow(self, request: Request, work: Work) -> AsyncGenerator[list[GenerationDelta] | GenerateResponse]:
        """Yields what the request's run says, what has gathered at a time, and its answer; begins one if there is none.

        Raises REQUEST_ID_REUSED, and what `work` raises.
        """
        sent = 0
        with self._following(request, work) as (run, grown):
            while not run.task.done():
                await grown.wait()
                grown.clear()
                if deltas := run.deltas[sent:]:
                    sent += len(deltas)
                    yield deltas
            if deltas := run.deltas[sent:]:
                yield deltas
            yield run.task.result()

    async def answer(self, request: Request, work: Work) -> GenerateResponse:
        """Returns the answer of the request's run, as `follow` has it, and hears nothing of its growth."""
        if request.request_id:
            with self._following(request, work) as (run, _):
                await asyncio.wait([run.task])
                return run.task.result()
        # Nobody can join it: it needs no task of its own.
        own = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(own)
        try:
            return await work(_tell_nobody)
        finally:
            self._tasks.discard(own)

    async def close(self) -> None:
        """Cancels what runs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @contextmanager
    def _following(self, request: Request, work: Work) -> Generator[tuple[_Run, asyncio.Event]]:
        """Gives the run, and what is set whenever it has grown or ended."""
        run = self._join(request, work)
        grown = asyncio.Event()
        run.followers.add(grown)
        if run.deltas:
            grown.set()
        try:
            yield run, grown
        finally:
            run.followers.discard(grown)
            if not run.followers:
                run.task.cancel()
                self._forget(run)

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
            task.exception()  # Whoever still follows raises it; nobody may.
        run.wake()

    def _forget(self, run: _Run) -> None:
        key = (run.request.tenant_id, run.request.request_id)
        if self._runs.get(key) is run:
            del self._runs[key]


def _tell_nobody(_deltas: list[GenerationDelta]) -> None:
    pass
