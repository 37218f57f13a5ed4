"""Keeps the turn index up with the log: a member of a group that shares the partitions of `agent.turns`."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from google.protobuf.message import DecodeError

from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from agentshell.log.log import Lease, Log, StoredRecord
from agentshell.mesh import ids
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from agentshell.turn.state import apply, is_over
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import TurnEvent
from kfm.turn.v1.turn_pb2 import Turn

_log = structlog.get_logger("agentshell.projector")

GROUP = "gateways"
_POLL_RECORDS = 500
_POLL_SECONDS = 30.0
_RETRY_SECONDS = 0.5
# What comes within this time is written together: who asks for one turn is told the newest anyway.
_LINGER_SECONDS = 0.05


class Projector:
    """Folds events into the index. A crash repeats the last batch, which changes nothing."""

    def __init__(self, log: Log, index: TurnIndex) -> None:
        self._log = log
        self._index = index
        self._member = f"projector-{ids.ulid()}"
        self._lease: Lease | None = None
        self._open: dict[tuple[str, str], IndexedTurn] = {}  # turns that are not over
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="projector")

    async def stop(self) -> None:
        """Leaves the group."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._lease is not None:
            with contextlib.suppress(AgentShellError):
                await self._log.leave(self._lease)

    async def _run(self) -> None:
        while True:
            try:
                self._lease = await self._log.join(envelope.TURNS, GROUP, self._member)
                self._open.clear()
                while True:
                    records = await self._log.poll(self._lease, _POLL_RECORDS, _POLL_SECONDS)
                    if records:
                        await self._project(records)
                        ends = {stored.partition: stored.offset + 1 for stored in records}
                        await self._log.commit(self._lease, ends)
                        await asyncio.sleep(_LINGER_SECONDS)
            except AgentShellError as error:
                if error.reason != error_pb2.ERROR_REASON_FENCED:
                    _log.warning("projector pauses", reason=error.name, message=error.message)
                    await asyncio.sleep(_RETRY_SECONDS)
            except Exception:
                _log.exception("projector failed")
                await asyncio.sleep(_RETRY_SECONDS)

    async def _project(self, records: list[StoredRecord]) -> None:
        changed: dict[tuple[str, str], IndexedTurn] = {}
        for stored in records:
            try:
                event = TurnEvent.FromString(stored.record.payload)
            except DecodeError:
                continue  # The manager sees it too, and buries it.
            key = (event.header.tenant_id, event.turn_id)
            row = changed.get(key) or await self._find(key, stored.offset)
            if stored.offset > (row.folded_offset if row.folded_offset is not None else -1):
                apply(row.turn, event)
                row.folded_offset = stored.offset
                changed[key] = row
        rows = [row for row in changed.values() if row.turn.turn_id]
        if rows:
            await self._index.save(rows)
        self._open.update((key, row) for key, row in changed.items() if not is_over(row.turn))
        for key, row in changed.items():
            if is_over(row.turn):
                self._open.pop(key, None)

    async def _find(self, key: tuple[str, str], offset: int) -> IndexedTurn:
        return self._open.get(key) or await self._index.find(*key) or IndexedTurn(key[0], Turn(), offset, 0)
