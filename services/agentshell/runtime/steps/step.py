"""The port for kinds of steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult

Emit = Callable[[Sequence[str]], Awaitable[None]]

# The cancellation message of an attempt that another worker redoes: what it started elsewhere continues.
HANDED_OVER = "handed over"


class StepRunner(Protocol):
    """Runs steps of one kind."""

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        """Runs one attempt, as the turn's principal. `emit` publishes text as it comes.

        Every effect carries the step's id as its key. Raises the error that the attempt fails with. When cancelled, it
        stops what it started elsewhere, unless the cancellation's message is HANDED_OVER.
        """
        ...
