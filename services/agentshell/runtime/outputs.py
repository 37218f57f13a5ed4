"""The text of a step on its way to its readers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from agentshell.log.log import Ack, Log
from agentshell.mesh import ids
from agentshell.turn import envelope
from agentshell.turn.records import record_of
from kfm.turn.v1.turn_event_pb2 import OutputDelta, StepRequest

_MAX_UNDER_WAY = 16


class Outputs:
    """Publishes what one run of an attempt says. `count` is how many texts there were."""

    def __init__(self, log: Log, request: StepRequest) -> None:
        self._log = log
        self._request = request
        self._run_id = ""
        self._under_way: deque[asyncio.Task[list[Ack]]] = deque()
        self.count = 0

    async def emit(self, texts: Sequence[str]) -> None:
        """Publishes texts, in order. Returns while the log still takes them, unless that is far behind."""
        request = self._request
        self._run_id = self._run_id or ids.ulid()
        delta = OutputDelta(
            turn_id=request.turn_id,
            step_id=request.step.step_id,
            attempt=request.attempt,
            run_id=self._run_id,
            index=self.count,
            texts=texts,
        )
        envelope.follow(delta.header, request.header)
        envelope.begin(delta.header, ids.digest(self._run_id, self.count), OutputDelta.DESCRIPTOR.full_name)
        self.count += len(texts)
        append = asyncio.create_task(self._log.append(envelope.OUTPUTS, [record_of(delta)]))
        append.add_done_callback(lambda append: append.cancelled() or append.exception())  # Told by `flush`, if at all.
        self._under_way.append(append)
        if len(self._under_way) > _MAX_UNDER_WAY:
            await self._under_way.popleft()

    async def flush(self) -> None:
        """Returns once the log has all of it: a result must not come before its text."""
        while self._under_way:
            await self._under_way.popleft()

    def close(self) -> None:
        """Gives up what the log has not taken yet."""
        for task in self._under_way:
            task.cancel()
