"""What a record's payload leaves out, its readers have nevertheless."""

from __future__ import annotations

import pytest

from agentshell.mesh import ids
from agentshell.turn import envelope
from agentshell.turn.records import command_of, command_record, delta_of, event_of, record_of, stamp
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import (
    OutputDelta,
    PlanExtended,
    StepCommand,
    StepRequest,
    StepScheduled,
    StepStop,
    TurnEvent,
)
from kfm.turn.v1.turn_pb2 import ModelStep, NoopStep, Step, ToolStep

TURN_ID = "01M80TS5ABME3Q465AXSQ4GZGH"
HEADER = EventHeader(
    event_id="0" * 26,
    tenant_id="acme",
    session_id="a/b",
    correlation_id=TURN_ID,
    traceparent="00-78203b4daaee3a2d315b788282e0cf6a-ff0a03643b2e3890-01",
)
SCHEDULED = TurnEvent(step_scheduled=StepScheduled(step_id=f"{TURN_ID}/a", attempt=1))


def extended(prefix: str) -> TurnEvent:
    """A plan that grows by what a model asks for, and by a step that undoes it."""
    tool = Step(
        step_id=f"{prefix}a#1.0",
        depends_on=[f"{prefix}a"],
        tool=ToolStep(asked_by=f"{prefix}a"),
        grown_from=f"{prefix}a",
    )
    model = Step(step_id=f"{prefix}a#2", depends_on=[f"{prefix}a#1.0"], model=ModelStep(continues=f"{prefix}a"))
    undo = Step(step_id=f"{prefix}undo", noop=NoopStep(), compensates=f"{prefix}a#1.0")
    grown = PlanExtended(step_id=f"{prefix}a", steps=[tool, model, undo], stand_in_ids=[f"{prefix}a#2"])
    return TurnEvent(plan_extended=grown)


# A caller may name a step like a turn, and a turn's id is not always unknown before.
@pytest.mark.parametrize("prefix", [f"{TURN_ID}/", f"{TURN_ID}/{TURN_ID}/", TURN_ID, ""])
def test_a_record_gives_back_the_event_and_leaves_it_as_it_was(prefix: str) -> None:
    for event in (SCHEDULED, extended(prefix)):
        stamped = stamp(event, TURN_ID, HEADER)
        before = TurnEvent.FromString(stamped.SerializeToString())
        assert event_of(record_of(stamped)) == stamped == before


def test_a_payload_does_not_repeat_key_headers_and_the_turns_id() -> None:
    payload = record_of(stamp(extended(f"{TURN_ID}/"), TURN_ID, HEADER)).payload
    assert payload.count(TURN_ID.encode()) == 1
    for said in ("acme", "a/b", HEADER.traceparent, "kfm."):
        assert said.encode() not in payload


def test_a_record_from_before_which_repeats_it_all_is_read_as_ever() -> None:
    for event in (SCHEDULED, extended(f"{TURN_ID}/")):
        stamped = stamp(event, TURN_ID, HEADER)
        assert event_of(record_of(stamped)._replace(payload=stamped.SerializeToString())) == stamped


def test_deltas_and_commands_come_back_whole_too() -> None:
    delta = OutputDelta(header=HEADER, turn_id=TURN_ID, step_id=f"{TURN_ID}/a", texts=["Well"])
    envelope.begin(delta.header, ids.ulid(), OutputDelta.DESCRIPTOR.full_name)
    assert delta_of(record_of(delta)) == delta
    run = StepRequest(header=HEADER, turn_id=TURN_ID, step=Step(step_id=f"{TURN_ID}/a", noop=NoopStep()))
    stop = StepStop(header=HEADER, turn_id=TURN_ID)
    for command in (StepCommand(run=run), StepCommand(stop=stop)):
        record = command_record(command)
        assert command_of(record) == command
        assert record.key == TURN_ID
