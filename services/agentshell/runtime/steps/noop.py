"""The step that does nothing."""

from __future__ import annotations

from agentshell.runtime.steps.step import Emit
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult


class NoopRunner:
    """Returns the step's input as its output."""

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        return StepResult(output=request.input)
