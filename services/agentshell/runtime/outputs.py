"""Publishes the text of a step to its readers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from agentshell.log.log import Ack, Log, Record
from agentshell.mesh import ids
from agentshell.turn import envelope
from agentshell.turn.records import record_of
from kfm.turn.v1.turn_event_pb2 import OutputDelta, StepRequest

_MAX_UNDER_WAY = 16
_MAX_LAST_BYTES = 64 * 1024  # Anything larger is appended separately from the result, and may be refused.


class Outputs:
    """Publishes the texts of one run of an attempt. `count` is the number of texts so far.

    Texts are appended in the next iteration of the event loop. Those of the iteration in which the attempt ends, which
    usually include the last words of an answer, go with its result instead: one commit and one message fewer.
    """

    def __init__(self, log: Log, request: StepRequest) -> None:
        self._log = log
        self._request = request
        self._run_id = ""
        self._newest: Record | None = None
        self._under_way: deque[asyncio.Task[list[Ack]]] = deque()
        self.count = 0

    async def emit(self, texts: Sequence[str]) -> None:
        """Publishes texts, in order. Does not wait for the log unless it is far behind."""
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
        self._send()
        self._newest = record_of(delta)
        asyncio.get_running_loop().call_soon(self._send)
        if len(self._under_way) > _MAX_UNDER_WAY:
            await self._under_way.popleft()

    async def flush(self) -> Sequence[Record]:
        """Waits until the log has all earlier texts. Returns the last ones, to append with the result but before it."""
        last, self._newest = self._newest, None
        if last is not None and len(last.payload) > _MAX_LAST_BYTES:
            self._append(last)
            last = None
        while self._under_way:
            await self._under_way.popleft()
        return [] if last is None else [last]

    def close(self) -> None:
        """Abandons what the log has not confirmed yet."""
        self._newest = None
        for task in self._under_way:
            task.cancel()

    def _send(self) -> None:
        newest, self._newest = self._newest, None
        if newest is not None:
            self._append(newest)

    def _append(self, record: Record) -> None:
        append = asyncio.create_task(self._log.append(envelope.OUTPUTS, [record]))
        append.add_done_callback(lambda append: append.cancelled() or append.exception())  # `flush`, if any, raises it.
        self._under_way.append(append)
