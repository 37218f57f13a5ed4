"""Events as records of the log: named, stamped, keyed."""

from __future__ import annotations

from google.protobuf.message import Message

from agentshell.log.log import Record
from agentshell.mesh import ids
from agentshell.turn import envelope
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import OutputDelta, StepCommand, TurnEvent


def stamp(event: TurnEvent, turn_id: str, before: EventHeader) -> TurnEvent:
    """Gives an event of `turn_id` that follows `before` its header.

    The same decision after the same event gets the same id, always; after another event it may count where it did not
    count before, and is another.
    """
    event.turn_id = turn_id
    envelope.follow(event.header, before)
    event_id = ids.digest(before.event_id, *envelope.event_key(event))
    envelope.begin(event.header, event_id, envelope.type_of(event))
    return event


def turn_id_of(tenant_id: str, request_id: str) -> str:
    """Returns the id of the turn that a request makes: a repeat finds the first one's, for good."""
    return ids.digest("turn", tenant_id, request_id) if request_id else ids.ulid()


def record_of(message: TurnEvent | OutputDelta) -> Record:
    """Returns the record of an event of a session."""
    header = message.header
    return _record(envelope.session_key(header.tenant_id, header.session_id), header, message)


def command_record(command: StepCommand) -> Record:
    """Returns the record of a command: those of one turn go to one worker, in order."""
    body = command.run if command.HasField("run") else command.stop
    return _record(body.turn_id, body.header, command)


def event_of(record: Record, event: TurnEvent | None = None) -> TurnEvent:
    """Returns the event of a record of `agent.turns`, put into an empty one where that is given. Raises DecodeError."""
    event = TurnEvent() if event is None else event
    event.MergeFromString(record.payload)
    _restore(event.header, record)
    return event


def delta_of(record: Record, delta: OutputDelta | None = None) -> OutputDelta:
    """Returns the text of a record of `agent.outputs`, put into an empty one if that is given. Raises DecodeError."""
    delta = OutputDelta() if delta is None else delta
    delta.MergeFromString(record.payload)
    _restore(delta.header, record)
    return delta


def command_of(record: Record) -> StepCommand:
    """Returns the command of a record of `agent.steps`. Raises DecodeError."""
    command = StepCommand.FromString(record.payload)
    _restore(command.run.header if command.HasField("run") else command.stop.header, record)
    return command


def _record(key: str, header: EventHeader, message: Message) -> Record:
    """What every consumer of the log can read, without knowing the message, travels as headers, and only there."""
    headers = {"type": header.type, "traceparent": header.traceparent}
    header.ClearField("type")
    header.ClearField("traceparent")
    payload = message.SerializeToString()
    header.type, header.traceparent = headers["type"], headers["traceparent"]
    return Record(
        key=key,
        record_id=ids.record_id(header.event_id),
        payload=payload,
        headers={name: value for name, value in headers.items() if value},
    )


def _restore(header: EventHeader, record: Record) -> None:
    header.type, header.traceparent = record.headers.get("type", ""), record.headers.get("traceparent", "")
