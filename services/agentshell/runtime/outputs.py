"""The text of a step on its way to its readers."""

from __future__ import annotations

from collections.abc import Sequence

from agentshell.log.log import Log
from agentshell.mesh import ids
from agentshell.turn import envelope
from agentshell.turn.records import record_of
from kfm.turn.v1.turn_event_pb2 import OutputDelta, StepRequest


class Outputs:
    """Publishes what one run of an attempt says. `count` is how many texts there were."""

    def __init__(self, log: Log, request: StepRequest) -> None:
        self._log = log
        self._request = request
        self._run_id = ids.ulid()
        self.count = 0

    async def emit(self, texts: Sequence[str]) -> None:
        """Publishes texts in order; returns once the log has them."""
        request = self._request
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
        await self._log.append(envelope.OUTPUTS, [record_of(delta)])
