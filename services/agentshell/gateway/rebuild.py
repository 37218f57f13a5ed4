"""Rebuilds the turn index from the log while it is in use."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from agentshell.gateway.turn_index import IndexedTurn, TurnIndex, TurnKey
from agentshell.log.log import Log, StoredRecord
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from agentshell.turn.records import event_of
from agentshell.turn.state import apply, is_over
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import TurnEvent
from kfm.turn.v1.turn_pb2 import Turn

_READ_RECORDS = 500


async def rebuild(log: Log, index: TurnIndex) -> int:
    """Folds all that the log retains into the index. Returns how many turns were written.

    A row is replaced only once its turn is folded as far as before, and none is deleted, so readers miss no turn. A
    running projector keeps its copy of a turn in memory until the turn is over or the projector restarts. This holds
    one partition's open turns in memory. Raises LOG_UNAVAILABLE and DATABASE_UNAVAILABLE.
    """
    written = 0
    for partition, end in enumerate(await log.end_offsets(envelope.TURNS)):
        outputs_offset = await _oldest(log, envelope.OUTPUTS, partition)
        offset = await _oldest(log, envelope.TURNS, partition)
        rows: dict[TurnKey, IndexedTurn] = {}
        while offset < end and (records := await log.read(envelope.TURNS, partition, offset, _READ_RECORDS, 0.0)):
            events = [(stored.offset, event) for stored in records if (event := _decoded(stored))]
            for key, begin_offset in (await _begun(index, events)).items():
                rows.setdefault(key, IndexedTurn(key[0], Turn(), begin_offset, outputs_offset))
            for event_offset, event in events:
                row = rows.get(_key(event))
                if row and apply(row.turn, event):
                    row.folded_offset = event_offset
            written += await _save(index, [row for row in rows.values() if is_over(row.turn)])
            rows = {key: row for key, row in rows.items() if not is_over(row.turn)}
            offset = records[-1].offset + 1
        written += await _save(index, list(rows.values()))
    return written


async def _begun(index: TurnIndex, events: list[tuple[int, TurnEvent]]) -> dict[TurnKey, int]:
    """Returns where turns begin, ignoring a repeated first event of a turn that is over."""
    begun = {_key(event): offset for offset, event in reversed(events) if event.HasField("turn_requested")}
    known = await index.find_all(list(begun))
    return {
        key: offset
        for key, offset in begun.items()
        if key not in known or not is_over(known[key].turn) or (known[key].folded_offset or 0) >= offset
    }


def _decoded(stored: StoredRecord) -> TurnEvent | None:
    try:
        return event_of(stored.record)
    except DecodeError:
        return None  # The manager buries it.


def _key(event: TurnEvent) -> TurnKey:
    return event.header.tenant_id, event.turn_id


async def _save(index: TurnIndex, rows: list[IndexedTurn]) -> int:
    if rows:
        await index.save(rows)
    return len(rows)


async def _oldest(log: Log, topic: str, partition: int) -> int:
    """Returns an offset from which everything that is retained can be read."""
    try:
        await log.read(topic, partition, 0, 1, 0.0)
    except AgentShellError as error:
        if error.reason != error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE:
            raise
        return int(error.metadata["base_offset"])
    return 0
