"""Adds what a completed turn said to its session's history."""

from __future__ import annotations

import grpc
import grpc.aio
import structlog

from agentshell.mesh import errors
from agentshell.mesh.call import Principal
from agentshell.runtime.retry import retry
from kfm.memory.v1.memory_service_pb2 import AppendMessagesRequest
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.turn.v1.turn_pb2 import Turn

_log = structlog.get_logger("agentshell.history")

# Codes worth a retry, including timeouts. The turn's id makes retries idempotent.
_PASSING_CODES = errors.TRANSIENT_CODES | {grpc.StatusCode.DEADLINE_EXCEEDED}
_DELAYS_SECONDS = (0.1, 0.5, 2.0, 5.0, 10.0)


class History:
    """Adds completed turns to their sessions' histories, once each."""

    def __init__(self, memory: grpc.aio.Channel) -> None:
        self._memory = MemoryServiceStub(memory)

    async def remember(self, tenant_id: str, turn: Turn) -> None:
        """Adds the turn's input and output. Retries for a while; if that fails, logs which turn is missing."""
        request = AppendMessagesRequest(
            session_id=turn.session_id,
            messages=[turn.input, turn.output],
            request_id=turn.turn_id,
            # The user whose data it is, for ForgetUser. Principals with an `@` are the mesh itself.
            user_id="" if turn.principal_id.startswith("@") else turn.principal_id,
        )
        error = await retry(
            lambda: self._memory.AppendMessages(request),
            Principal(tenant_id, turn.principal_id),
            _DELAYS_SECONDS,
            lambda error: error.code not in _PASSING_CODES,
        )
        if error is not None:
            _log.error("history lacks a turn", turn_id=turn.turn_id, session_id=turn.session_id, reason=error.name)
