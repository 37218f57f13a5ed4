"""A turn's events in a log, for tests of code that folds them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from agentshell.log.log import Log, Record, Topic
from agentshell.mesh import ids
from agentshell.turn import envelope
from agentshell.turn.records import record_of, stamp
from agentshell.turn.state import apply
from kfm.content.v1.content_pb2 import Message, Part, Text
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

TENANT = "acme"
SESSION = "s"
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
WAIT_SECONDS = 10.0


def told(turn_id: str, session: str = SESSION, **payload: Any) -> e.TurnEvent:
    """Returns a stamped event of a turn, at a fixed time."""
    header = EventHeader(tenant_id=TENANT, session_id=session, correlation_id=turn_id)
    event = stamp(e.TurnEvent(**payload), turn_id, header)
    event.header.time.FromDatetime(BEGUN)
    return event


def text(size: int) -> Message:
    return Message(parts=[Part(text=Text(text="x" * size))])


def beginning(turn_id: str, *steps: str, session: str = SESSION) -> list[e.TurnEvent]:
    plan = t.Plan(steps=[t.Step(step_id=step, noop=t.NoopStep()) for step in steps])
    return [
        told(turn_id, session, turn_requested=e.TurnRequested(input=text(10))),
        told(turn_id, session, plan_created=e.PlanCreated(plan=plan)),
    ]


def done(turn_id: str, step: str, size: int = 1, session: str = SESSION, *, delta_count: int = 0) -> list[e.TurnEvent]:
    result = t.StepResult(output=text(size), delta_count=delta_count)
    return [
        told(turn_id, session, step_scheduled=e.StepScheduled(step_id=step, attempt=1)),
        told(turn_id, session, step_succeeded=e.StepSucceeded(step_id=step, attempt=1, result=result)),
    ]


def end(turn_id: str, session: str = SESSION) -> e.TurnEvent:
    return told(turn_id, session, turn_completed=e.TurnCompleted(output=text(1)))


def folded(*events: e.TurnEvent) -> t.Turn:
    turn = t.Turn()
    for event in events:
        apply(turn, event)
    return turn


async def append(log: Log, *events: e.TurnEvent) -> int:
    """Appends events, and returns the offset after them."""
    acks = await log.append(envelope.TURNS, [record_of(event) for event in events])
    return acks[-1].offset + 1


def again(event: e.TurnEvent) -> Record:
    """Returns the event as a record that a log which does not remember ids takes a second time."""
    record = record_of(event)
    return Record(record.key, ids.record_id(ids.ulid()), record.payload, record.headers)


async def make_topics(log: Log, partitions: int = 1) -> None:
    for topic in (envelope.TURNS, envelope.OUTPUTS):
        await log.ensure_topic(Topic(topic, partitions, timedelta(hours=1)))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until the condition, which is Postgres's state, holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await condition():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)


async def say(log: Log, turn_id: str, step: str, index: int, session: str = SESSION) -> e.OutputDelta:
    """Appends a piece of text of a step's first attempt."""
    delta = e.OutputDelta(turn_id=turn_id, step_id=step, attempt=1, run_id="R", index=index, texts=[f"{index}"])
    delta.header.tenant_id, delta.header.session_id = TENANT, session
    envelope.begin(delta.header, ids.ulid(), e.OutputDelta.DESCRIPTOR.full_name)
    await log.append(envelope.OUTPUTS, [record_of(delta)])
    return delta
