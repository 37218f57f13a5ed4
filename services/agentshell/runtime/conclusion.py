"""What follows the end of a turn: its session remembers it, its sub-turns end, its parked row is deleted."""

from __future__ import annotations

import logging
from functools import cache

import structlog

from agentshell.mesh import telemetry
from agentshell.mesh.telemetry import TURN_SECONDS
from agentshell.runtime.history import History
from agentshell.runtime.open_turn import OpenTurn
from agentshell.runtime.parking import Parking
from agentshell.runtime.sub_turns import SubTurns
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, Turn, TurnState

_log = structlog.get_logger("agentshell.manager")

_seconds = cache(TURN_SECONDS.labels)


class Conclusion:
    """Concludes turns that are over. Repeating it is harmless."""

    def __init__(self, history: History, sub_turns: SubTurns, parking: Parking) -> None:
        self._history = history
        self._sub_turns = sub_turns
        self._parking = parking

    def is_needed(self, open_turn: OpenTurn, *, was_parked: bool) -> bool:
        """Returns whether the turn's end requires more than `tell`."""
        answered = open_turn.turn.output.role == ROLE_ASSISTANT
        return answered or was_parked or open_turn.turn.state != TURN_STATE_COMPLETED

    async def run(self, open_turn: OpenTurn, *, was_parked: bool) -> None:
        """Does what the turn's end requires. Raises DATABASE_UNAVAILABLE."""
        tenant_id, turn = open_turn.header.tenant_id, open_turn.turn
        if turn.output.role == ROLE_ASSISTANT:  # There is an answer.
            await self._history.remember(tenant_id, turn)
        if turn.state != TURN_STATE_COMPLETED:
            await self._sub_turns.cancel(tenant_id, turn)
        if was_parked:
            await self._parking.forget(turn.turn_id)


def tell(open_turn: OpenTurn) -> None:
    """Reports the end of a turn in the logs and metrics."""
    turn: Turn = open_turn.turn
    state = TurnState.Name(turn.state).removeprefix("TURN_STATE_").lower()
    seconds = (turn.end_time.ToNanoseconds() - turn.create_time.ToNanoseconds()) / 1e9
    _seconds(state).observe(seconds)
    trace_id = telemetry.trace_id(open_turn.header.traceparent)
    level = logging.DEBUG if turn.state == TURN_STATE_COMPLETED else logging.INFO
    _log.log(level, "turn over", turn_id=turn.turn_id, state=state, session_id=turn.session_id, trace_id=trace_id)
