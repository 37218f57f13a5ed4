"""What a session remembers of a turn that completed."""

from __future__ import annotations

import asyncio

import grpc.aio
import structlog

from agentshell.mesh import call, errors
from kfm.memory.v1.memory_service_pb2 import AppendMessagesRequest
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.turn.v1.turn_pb2 import Turn

_log = structlog.get_logger("agentshell.history")

_TRY_SECONDS = 5.0
_DELAYS_SECONDS = (0.1, 0.5, 2.0, 5.0, 10.0)


class History:
    """Adds completed turns to their sessions' history, once each."""

    def __init__(self, memory: grpc.aio.Channel) -> None:
        self._memory = MemoryServiceStub(memory)

    async def remember(self, tenant_id: str, turn: Turn) -> None:
        """Adds the turn's input and output. Tries for a while; then says in the log what the history lacks."""
        request = AppendMessagesRequest(
            session_id=turn.session_id, messages=[turn.input, turn.output], request_id=turn.turn_id
        )
        for delay in (*_DELAYS_SECONDS, None):
            try:
                with call.scope(call.Principal(tenant_id, turn.principal_id), _TRY_SECONDS):
                    await self._memory.AppendMessages(request)
                return
            except grpc.aio.AioRpcError as failed:
                error = errors.of(failed)
            if delay is None or error.code not in errors.TRANSIENT_CODES:
                _log.error("history lacks a turn", turn_id=turn.turn_id, session_id=turn.session_id, reason=error.name)
                return
            await asyncio.sleep(delay)
