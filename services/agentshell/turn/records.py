"""Converts events to log records and back: ids, headers and keys."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from agentshell.log.log import Record
from agentshell.mesh import ids
from agentshell.turn import envelope, plan
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import OutputDelta, PlanExtended, StepCommand, TurnEvent

_PLAN_EXTENDED = PlanExtended.DESCRIPTOR.full_name


def stamp(event: TurnEvent, turn_id: str, before: EventHeader) -> TurnEvent:
    """Sets the header of an event of `turn_id` that follows `before`.

    The same decision after the same event always gets the same id. After a different event it gets a different one,
    because it may take effect there although it did not before.
    """
    event.turn_id = turn_id
    envelope.follow(event.header, before)
    event_id = ids.digest(before.event_id, *envelope.event_key(event))
    envelope.begin(event.header, event_id, envelope.type_of(event))
    return event


def turn_id_of(tenant_id: str, request_id: str) -> str:
    """Returns the id of the turn that a request creates. Without a time limit, a repeat gets the same one."""
    return ids.digest("turn", tenant_id, request_id) if request_id else ids.ulid()


def record_of(message: TurnEvent | OutputDelta) -> Record:
    """Returns the record of a session's event or delta."""
    header = message.header
    key = envelope.session_key(header.tenant_id, header.session_id)
    header.tenant_id = header.session_id = ""
    if header.type == _PLAN_EXTENDED and isinstance(message, TurnEvent):
        turn_id = message.turn_id
        _rename(message.plan_extended, lambda name: name[len(turn_id) :] if name.startswith(f"{turn_id}/") else name)
    record = _record(key, header, message)
    _complete(message, record)
    return record


def command_record(command: StepCommand) -> Record:
    """Returns the record of a command. Its key keeps a turn's commands in order, at one worker."""
    body = command.run if command.HasField("run") else command.stop
    turn_id, body.turn_id = body.turn_id, ""
    record = _record(turn_id, body.header, command)
    _complete_command(command, record)
    return record


def event_of(record: Record, event: TurnEvent | None = None) -> TurnEvent:
    """Decodes a record of `agent.turns`, into `event` if that is given, which must be empty. Raises DecodeError."""
    event = TurnEvent() if event is None else event
    event.MergeFromString(record.payload)
    _complete(event, record)
    return event


def delta_of(record: Record, delta: OutputDelta | None = None) -> OutputDelta:
    """Decodes a record of `agent.outputs`, into `delta` if that is given, which must be empty. Raises DecodeError."""
    delta = OutputDelta() if delta is None else delta
    delta.MergeFromString(record.payload)
    _complete(delta, record)
    return delta


def command_of(record: Record) -> StepCommand:
    """Decodes a record of `agent.steps`. Raises DecodeError."""
    command = StepCommand.FromString(record.payload)
    _complete_command(command, record)
    return command


# A payload leaves out what the record's headers and key say, which consumers can read without knowing the message. It
# also leaves out the turn's id as `correlation_id`, and at the start of step ids where a plan grows. A message that was
# written is completed again by the same code as one that is read.


def _record(key: str, header: EventHeader, message: Message) -> Record:
    headers = {"type": header.type, "traceparent": header.traceparent}
    header.type = header.traceparent = header.correlation_id = ""
    return Record(
        key=key,
        record_id=ids.record_id(header.event_id),
        payload=message.SerializeToString(),
        headers={name: value for name, value in headers.items() if value},
    )


def _complete(message: TurnEvent | OutputDelta, record: Record) -> None:
    header = message.header
    header.tenant_id, _, header.session_id = record.key.partition("/")
    _restore(header, message.turn_id, record)
    if header.type == _PLAN_EXTENDED and isinstance(message, TurnEvent):
        turn_id = message.turn_id
        _rename(message.plan_extended, lambda name: turn_id + name if name.startswith("/") else name)


def _complete_command(command: StepCommand, record: Record) -> None:
    body = command.run if command.HasField("run") else command.stop
    body.turn_id = record.key
    _restore(body.header, record.key, record)


def _restore(header: EventHeader, turn_id: str, record: Record) -> None:
    header.type, header.traceparent = record.headers.get("type", ""), record.headers.get("traceparent", "")
    header.correlation_id = turn_id


def _rename(grown: PlanExtended, renamed: Callable[[str], str]) -> None:
    grown.step_id = renamed(grown.step_id)
    grown.stand_in_ids[:] = map(renamed, grown.stand_in_ids)
    plan.rename(grown.steps, renamed)
