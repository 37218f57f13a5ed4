"""The port of a kind of step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult

Emit = Callable[[Sequence[str]], Awaitable[None]]

# The message of the cancellation of an attempt that another worker makes again: what it began elsewhere goes on.
HANDED_OVER = "handed over"


class StepRunner(Protocol):
    """Runs steps of one kind."""

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        """Runs one attempt, within the call of who asked for the turn. `emit` publishes text as it comes.

        Every effect carries the step's id as its key. Raises what the attempt failed with. Cancelled, it ends what it
        began elsewhere, unless the cancellation's message is HANDED_OVER.
        """
        ...
