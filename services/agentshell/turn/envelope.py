"""The header of events, and their ids, which make a decision that is written twice one event."""

from __future__ import annotations

import time
from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import TurnEvent

# The topics of the log, keyed by session, except for the steps, which are keyed by turn.
TURNS = "agent.turns"
OUTPUTS = "agent.outputs"
STEPS = "agent.steps"

# The groups that share partitions: managers and gateways those of the turns, workers those of the steps.
MANAGERS = "managers"
GATEWAYS = "gateways"
WORKERS = "workers"

SPEC_VERSION = "1.0.0"

_TYPES: Mapping[str, str] = {
    field.name: field.message_type.full_name
    for field in TurnEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    if field.message_type
}


def event_key(event: TurnEvent) -> tuple[str | int, ...]:
    """Returns what identifies an event of a turn: its kind and, if it is about a step, the step and attempt."""
    kind = event.WhichOneof("event") or ""
    payload = getattr(event, kind)
    if kind == "turn_waiting":
        return (event.turn_id, kind, *payload.step_ids)  # It never waits for the same answers twice.
    return (event.turn_id, kind, getattr(payload, "step_id", ""), getattr(payload, "attempt", 0))


def type_of(event: TurnEvent) -> str:
    """Returns the full Protobuf name of the event."""
    return _TYPES[event.WhichOneof("event") or ""]


def begin(header: EventHeader, event_id: str, type_name: str) -> None:
    """Sets an event's id and type, and its time to now."""
    header.event_id = event_id
    header.type = type_name
    header.spec_version = SPEC_VERSION
    set_time(header.time, time.time_ns())


def set_time(timestamp: Timestamp, nanoseconds: int) -> None:
    """Sets a time from nanoseconds since 1970. (The library's own methods take four times as long.)"""
    timestamp.seconds, timestamp.nanos = divmod(nanoseconds, 1_000_000_000)


def follow(header: EventHeader, before: EventHeader) -> None:
    """Makes an event follow another of its turn: same tenant, session, trace and correlation. `begin` names it."""
    header.CopyFrom(before)
    header.causation_id = before.event_id


def own_session_id(turn_id: str) -> str:
    """Returns the session of a turn that was requested without one. It is always new."""
    return f"s-{turn_id}"


def session_key(tenant_id: str, session_id: str) -> str:
    """Returns the log key of a session, which keeps the tenants' sessions apart."""
    return f"{tenant_id}/{session_id}"
