"""Appends a turn's events to the log, and reads those that the index does not have, or not yet."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from google.protobuf.message import DecodeError

from agentshell.gateway import fork
from agentshell.gateway.turn_index import IndexedTurn
from agentshell.log.log import Ack, Log, StoredRecord, partition_of
from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from agentshell.turn.records import event_of, record_of
from agentshell.turn.state import LAST_EVENTS, apply, is_over
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import InputProvided, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import STEP_STATE_SUCCEEDED, Turn

_READ_RECORDS = 500


class TurnEvents:
    """Appends events to `agent.turns` and reads those of one turn. Raises LOG_UNAVAILABLE."""

    def __init__(self, log: Log, partitions: int) -> None:
        self._log = log
        self._partitions = partitions

    def partition_of(self, tenant_id: str, session_id: str) -> int:
        """Returns the partition that holds a session."""
        return partition_of(envelope.session_key(tenant_id, session_id), self._partitions)

    async def append(self, event: TurnEvent) -> Ack:
        """Returns once the event is in the log, durably."""
        [ack] = await self._log.append(envelope.TURNS, [record_of(event)])
        return ack

    async def read(self, row: IndexedTurn, offset: int) -> AsyncGenerator[tuple[StoredRecord, TurnEvent]]:
        """Yields the turn's events from `offset` to the end of the log."""
        key = envelope.session_key(row.tenant_id, row.turn.session_id)
        partition = self.partition_of(row.tenant_id, row.turn.session_id)
        while records := await self._log.read(envelope.TURNS, partition, offset, _READ_RECORDS, 0.0):
            for stored in records:
                if stored.record.key != key:
                    continue
                with contextlib.suppress(DecodeError):  # The manager buries what cannot be decoded.
                    event = event_of(stored.record)
                    if event.turn_id == row.turn.turn_id:
                        yield stored, event
            offset = records[-1].offset + 1

    async def catch_up(self, row: IndexedTurn) -> bool:
        """Folds what the index has not seen. Returns whether the turn exists, since a claim may never be appended."""
        if row.folded_offset is None:  # The log may have another call's event than the claim's.
            turn, offset = Turn(), row.turns_offset
        else:
            turn, offset = row.turn, row.next_offset
        if not is_over(turn):
            async for stored, event in self.read(row, offset):
                if apply(turn, event):
                    row.turn, row.folded_offset = turn, stored.offset
        return row.folded_offset is not None

    async def past(self, row: IndexedTurn, step_id: str) -> tuple[TurnRequested, Turn]:
        """Returns a turn's request, and the turn as it was when the step succeeded; without a step, at its start."""
        requested, turn = TurnRequested(), Turn()
        async for _, event in self.read(row, row.turns_offset):
            apply(turn, event)
            if event.HasField("turn_requested"):
                requested = event.turn_requested
            if not step_id or has_succeeded(turn, step_id):
                break
        else:
            raise AgentShellError(
                error_pb2.ERROR_REASON_TURN_STATE,
                f"step {step_id!r} of turn {row.turn.turn_id} has not succeeded; ListTurnEvents says which steps have",
                metadata={"turn_id": row.turn.turn_id, "step_id": step_id},
            )
        if fork.is_undoing(turn, step_id):
            raise errors.invalid(
                "step_id", f"{step_id!r} is a compensation, which undoes what was done; name a step before it"
            )
        return requested, turn

    async def has_cancel(self, row: IndexedTurn, cancel: TurnEvent, offset: int, request_id: str) -> bool:
        """Returns whether this cancellation is in the log, at `offset` or later, before the turn's end.

        Raises REQUEST_ID_REUSED if `request_id` named another one.
        """
        async for _, event in self.read(row, offset):
            if event.header.event_id == cancel.header.event_id:
                if event.turn_cancel_requested != cancel.turn_cancel_requested:
                    raise errors.request_id_reused(request_id)
                return True
            if event.WhichOneof("event") in LAST_EVENTS:
                break
        return False

    async def answer(self, row: IndexedTurn, step_id: str, offset: int) -> InputProvided | None:
        """Returns the first answer to a step's question at `offset` or later."""
        async for _, event in self.read(row, offset):
            if event.HasField("input_provided") and event.input_provided.step_id == step_id:
                return event.input_provided
        return None


def has_succeeded(turn: Turn, step_id: str) -> bool:
    """Returns whether a step has succeeded."""
    return any(step.step_id == step_id and step.state == STEP_STATE_SUCCEEDED for step in turn.plan.steps)
