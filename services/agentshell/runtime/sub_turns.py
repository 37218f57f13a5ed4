"""Sub-turns do not outlive the turn whose steps started them."""

from __future__ import annotations

import asyncio

import grpc.aio
import structlog

from agentshell.mesh.call import Principal
from agentshell.runtime.request import has_turn
from agentshell.runtime.retry import retry
from agentshell.turn.records import turn_id_of
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_pb2 import STEP_STATE_SCHEDULED, Turn
from kfm.turn.v1.turn_service_pb2 import CancelTurnRequest
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub

_log = structlog.get_logger("agentshell.sub_turns")

_NOTHING_TO_CANCEL = (error_pb2.ERROR_REASON_TURN_STATE, error_pb2.ERROR_REASON_TURN_NOT_FOUND)
# The step's request may still be in flight when the step is stopped, so a turn not found is retried too.
_DELAYS_SECONDS = (0.05, 0.5, 2.0)


class SubTurns:
    """Cancels a turn's remaining sub-turns."""

    def __init__(self, gateway: grpc.aio.Channel) -> None:
        self._turns = TurnServiceStub(gateway)

    async def cancel(self, tenant_id: str, turn: Turn) -> None:
        """Cancels the sub-turns of steps under way when `turn` ended. Retries for a while, then logs a failure."""
        steps = [step for step in turn.plan.steps if has_turn(step) and step.state == STEP_STATE_SCHEDULED]
        await asyncio.gather(*(self._cancel(tenant_id, turn, step.step_id) for step in steps))

    async def _cancel(self, tenant_id: str, turn: Turn, step_id: str) -> None:
        request = CancelTurnRequest(turn_id=turn_id_of(tenant_id, step_id), message=f"turn {turn.turn_id} has ended")
        error = await retry(
            lambda: self._turns.CancelTurn(request),
            Principal(tenant_id, turn.principal_id),
            _DELAYS_SECONDS,
            lambda error: error.reason == error_pb2.ERROR_REASON_TURN_STATE,  # It is over.
        )
        if error is not None and error.reason not in _NOTHING_TO_CANCEL:
            _log.error("sub-turn goes on", turn_id=request.turn_id, step_id=step_id, reason=error.name)
