"""Keeps the turn index up to date with the log, as a member of a group that shares `agent.turns`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog
from google.protobuf.message import DecodeError

from agentshell.gateway.turn_index import IndexedTurn, TurnIndex, TurnKey
from agentshell.log.log import Lease, Log, StoredRecord
from agentshell.mesh import ids
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from agentshell.turn.records import event_of
from agentshell.turn.state import Fold, is_over
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import TurnEvent
from kfm.turn.v1.turn_pb2 import Turn, TurnState

_log = structlog.get_logger("agentshell.projector")

_POLL_RECORDS = 500
_POLL_SECONDS = 30.0
_RETRY_SECONDS = 0.5
# What comes within this time is saved together; GetTurn reads the rest from the log anyway.
_LINGER_SECONDS = 0.2
# Bounds how far unsaved turns lag behind: what a takeover replays, and what GetTurn reads from the log.
_MAX_UNSAVED_RECORDS = 2000


_Event = tuple[TurnKey, StoredRecord, TurnEvent]


@dataclass(slots=True)
class _OpenTurn:
    """A turn that is folded here. A long one is saved whenever it has doubled, so that total writes stay linear."""

    row: IndexedTurn
    partition: int
    saved_state: TurnState.ValueType
    saved_bytes: int = 0
    unsaved_bytes: int = 0  # of the records folded since the save
    unsaved_offset: int | None = None  # of the first of those records
    _fold: Fold = field(init=False)

    def __post_init__(self) -> None:
        self._fold = Fold(self.row.turn)

    def fold(self, stored: StoredRecord, event: TurnEvent) -> bool:
        """Folds a record unless it was folded before. Returns whether it changed anything."""
        folded_offset = self.row.folded_offset
        if (folded_offset is not None and stored.offset <= folded_offset) or not self._fold.apply(event):
            return False
        self.row.folded_offset = stored.offset
        self.unsaved_bytes += len(stored.record.payload)
        if self.unsaved_offset is None:
            self.unsaved_offset = stored.offset
        return True

    def is_due(self, end: int) -> bool:
        """Returns whether to save it now, with its partition read up to `end`."""
        grown = self.row.turn.state != self.saved_state or self.unsaved_bytes > self.saved_bytes
        return grown or (self.unsaved_offset is not None and self.unsaved_offset < end - _MAX_UNSAVED_RECORDS)

    def saved(self) -> None:
        """Records that its current state is saved."""
        self.saved_state, self.saved_bytes = self.row.turn.state, self.row.turn.ByteSize()
        self.unsaved_bytes, self.unsaved_offset = 0, None


class Projector:
    """Folds events into the index. It commits only what is saved; repeating the rest after a crash is harmless."""

    def __init__(self, log: Log, index: TurnIndex) -> None:
        self._log = log
        self._index = index
        self._member = f"projector-{ids.ulid()}"
        self._lease: Lease | None = None
        self._open: dict[TurnKey, _OpenTurn] = {}  # turns that are not over
        self._unsaved: dict[TurnKey, _OpenTurn] = {}  # open turns that changed since their last save
        self._ends: dict[int, int] = {}  # next offset to read, by partition

    async def run(self) -> None:
        """Projects until cancelled, then leaves the group."""
        try:
            await self._run()
        finally:
            await self._leave()

    async def _run(self) -> None:
        while True:
            try:
                self._lease = await self._log.join(envelope.TURNS, envelope.GATEWAYS, self._member)
                for known in (self._open, self._unsaved, self._ends):
                    known.clear()
                while True:
                    records = await self._log.poll(self._lease, _POLL_RECORDS, _POLL_SECONDS)
                    if records:
                        await self._project(records)
                        await self._log.commit(self._lease, self._saved_ends())
                    if 0 < len(records) < _POLL_RECORDS:  # Otherwise there is more to read.
                        await asyncio.sleep(_LINGER_SECONDS)
            except AgentShellError as error:
                if error.reason == error_pb2.ERROR_REASON_FENCED:
                    continue
                _log.warning("projector pauses", reason=error.name, message=error.message)
            except Exception:
                _log.exception("projector failed")
            await self._leave()  # The next lease repeats what was read but not saved.
            await asyncio.sleep(_RETRY_SECONDS)

    async def _leave(self) -> None:
        if self._lease is not None:
            with contextlib.suppress(AgentShellError):
                await self._log.leave(self._lease)

    async def _project(self, records: list[StoredRecord]) -> None:
        events = list(_decoded(records))
        await self._find(events)
        for key, stored, event in events:
            if self._open[key].fold(stored, event):
                self._unsaved[key] = self._open[key]
        self._ends.update((stored.partition, stored.offset + 1) for stored in records)
        due = {key: turn for key, turn in self._unsaved.items() if turn.is_due(self._ends[turn.partition])}
        if due:
            await self._index.save([turn.row for turn in due.values()])
        for key, turn in due.items():
            turn.saved()
            del self._unsaved[key]
        for key in {key for key, _, _ in events}:
            turn = self._open[key].row.turn
            if is_over(turn) or not turn.turn_id:  # Its first event is gone: not a turn.
                del self._open[key]

    async def _find(self, events: list[_Event]) -> None:
        """Opens turns as the index has them: a record may be a repeat of a turn that is already over."""
        unknown = {key: stored for key, stored, _ in reversed(events) if key not in self._open}
        known = await self._index.find_all(list(unknown))
        for key, stored in unknown.items():
            row = known.get(key) or IndexedTurn(key[0], Turn(), stored.offset, 0)
            if row.folded_offset is None:  # The claim may be of another call.
                row.turn = Turn()
            self._open[key] = _OpenTurn(row, stored.partition, row.turn.state, row.turn.ByteSize())

    def _saved_ends(self) -> dict[int, int]:
        """Returns the offsets to commit: all that was read, up to the first unsaved record."""
        ends = dict(self._ends)
        for turn in self._unsaved.values():
            if turn.unsaved_offset is not None:
                ends[turn.partition] = min(ends[turn.partition], turn.unsaved_offset)
        return ends


def _decoded(records: Iterable[StoredRecord]) -> Iterable[_Event]:
    for stored in records:
        try:
            event = event_of(stored.record)
        except DecodeError:  # The manager sees it too, and buries it.
            continue
        yield (event.header.tenant_id, event.turn_id), stored, event
