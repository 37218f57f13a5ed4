"""Events as records of the log: named, stamped, keyed."""

from __future__ import annotations

from agentshell.log.log import Record
from agentshell.mesh import ids
from agentshell.turn import envelope
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import OutputDelta, TurnEvent


def stamp(event: TurnEvent, turn_id: str, before: EventHeader) -> TurnEvent:
    """Gives an event of `turn_id` that follows `before` its header. The same decision gets the same id, always."""
    event.turn_id = turn_id
    envelope.follow(event.header, before)
    envelope.begin(event.header, ids.digest(*envelope.event_key(event)), envelope.type_of(event))
    return event


def record_of(message: TurnEvent | OutputDelta) -> Record:
    """Returns the record of an event."""
    header = message.header
    headers = {"type": header.type, "traceparent": header.traceparent}
    return Record(
        key=envelope.session_key(header.tenant_id, header.session_id),
        record_id=ids.record_id(header.event_id),
        payload=message.SerializeToString(),
        headers={name: value for name, value in headers.items() if value},
    )
