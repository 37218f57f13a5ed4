"""The tools running in this process, so that a request repeated meanwhile joins its first run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agentshell.tool.attempt import Attempt
from kfm.content.v1.content_pb2 import ToolResult
from kfm.tool.v1.tool_service_pb2 import InvokeToolResponse

# Progress texts kept for a caller that reads nothing; more are dropped.
MAX_WAITING_PROGRESS = 64

Tell: TypeAlias = Callable[[str], None]
Work: TypeAlias = Callable[[Tell], Coroutine[Any, Any, ToolResult]]


@dataclass(eq=False, slots=True)
class _Run:
    attempt: Attempt
    task: asyncio.Task[ToolResult] = field(init=False)
    followers: set[asyncio.Queue[str | None]] = field(default_factory=set[asyncio.Queue[str | None]])

    def tell(self, text: str) -> None:
        for said in self.followers:
            if said.qsize() < MAX_WAITING_PROGRESS:
                said.put_nowait(text)

    def end(self, _task: asyncio.Task[ToolResult]) -> None:
        for said in self.followers:
            said.put_nowait(None)


class Runs:
    """At most one run for each request. It is cancelled when nobody follows it, or when a later attempt replaces it."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], _Run] = {}  # By tenant and request id.

    async def follow(self, attempt: Attempt, work: Work) -> AsyncGenerator[InvokeToolResponse]:
        """Streams the progress and the result of the request's run, which it starts if there is none.

        Raises REQUEST_ID_REUSED, FENCED, and what `work` raises.
        """
        run = self._join(attempt, work)
        said = asyncio.Queue[str | None]()  # Bounded by `tell`, which never waits for a slow reader.
        run.followers.add(said)
        if run.task.done():
            said.put_nowait(None)
        try:
            while (text := await said.get()) is not None:
                yield InvokeToolResponse(progress=text)
            if run.task.cancelled():
                raise attempt.fenced()
            yield InvokeToolResponse(result=run.task.result())
        finally:
            run.followers.discard(said)
            if not run.followers:
                self._drop(run)

    def _join(self, attempt: Attempt, work: Work) -> _Run:
        run = self._runs.get((attempt.tenant_id, attempt.request_id))
        if run is not None:
            if run.attempt.digest != attempt.digest:
                raise attempt.reused()
            if run.attempt.number > attempt.number:
                raise attempt.fenced()
            if run.attempt.number == attempt.number:
                return run
            self._drop(run)
        run = _Run(attempt)
        run.task = asyncio.create_task(work(run.tell))
        run.task.add_done_callback(run.end)
        self._runs[attempt.tenant_id, attempt.request_id] = run
        return run

    def _drop(self, run: _Run) -> None:
        run.task.cancel()
        key = (run.attempt.tenant_id, run.attempt.request_id)
        if self._runs.get(key) is run:
            del self._runs[key]
