"""Requests and outcomes that must not end a turn's owner: the next owner would end on them too, and so on forever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from agentshell.db.database import Database
from agentshell.log.log import Ack, Lease, Record, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import ids
from agentshell.mesh.config import RuntimeConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.conclusion import Conclusion
from agentshell.runtime.dispatch import Dispatch, LocalDispatch, LogDispatch
from agentshell.runtime.history import History
from agentshell.runtime.journal import Journal
from agentshell.runtime.manager import Manager
from agentshell.runtime.owner import Means
from agentshell.runtime.parking import Parking
from agentshell.runtime.steps.noop import NoopRunner
from agentshell.runtime.steps.step import Emit, StepRunner
from agentshell.runtime.sub_turns import SubTurns
from agentshell.runtime.worker import Worker
from agentshell.turn import envelope
from agentshell.turn.records import event_of, record_of, stamp
from agentshell.turn.state import apply, is_over
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.error.v1 import error_pb2
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import StepRequest, TurnCancelRequested, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import (
    TURN_STATE_CANCELLED,
    TURN_STATE_FAILED,
    NoopStep,
    Plan,
    Step,
    StepResult,
    Turn,
    TurnLimits,
)

BOUND_SECONDS = 30.0
LARGE = "x" * 900_000
LIMITS = TurnLimits(max_steps=25, max_attempts=3, max_duration=Duration(seconds=60))


@pytest.fixture
async def log(database: Database) -> AsyncGenerator[PostgresLog]:
    log = await PostgresLog.open(database)
    for topic in (envelope.TURNS, envelope.OUTPUTS, envelope.STEPS):
        await log.ensure_topic(Topic(topic, 1))
    yield log
    await log.close()


@asynccontextmanager
async def managed(log: PostgresLog, database: Database, dispatch: Dispatch) -> AsyncGenerator[None]:
    """Runs a manager of the log's turns."""
    parking = Parking(database)
    await parking.open()
    async with grpc.aio.insecure_channel("unix:nobody") as nobody:
        conclusion = Conclusion(History(nobody), SubTurns(nobody), parking)
        manager = Manager(Means(log, dispatch, parking, conclusion, RuntimeConfig()))
        await manager.start()
        try:
            yield
        finally:
            await manager.stop()


def told(**payload: Any) -> TurnEvent:
    """Returns an event of turn T."""
    return stamp(TurnEvent(**payload), "T", EventHeader(tenant_id="acme", session_id="s", correlation_id="T"))


async def ended(log: PostgresLog, *steps: Step, text: str = "hello") -> Turn:
    """Requests a turn, and returns it when it is over."""
    asked = Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])
    requested = TurnRequested(input=asked, principal_id="ann", plan=Plan(steps=steps), limits=LIMITS)
    [ack] = await log.append(envelope.TURNS, [record_of(told(turn_requested=requested))])
    return await over(log, 0, ack.offset)


async def over(log: PostgresLog, partition: int, offset: int) -> Turn:
    """Returns the turn that begins at the offset, once it is over."""
    turn = Turn()
    async with asyncio.timeout(BOUND_SECONDS):
        while not is_over(turn):
            for stored in await log.read(envelope.TURNS, partition, offset, 100, BOUND_SECONDS):
                offset = stored.offset + 1
                with suppress(DecodeError):
                    apply(turn, event_of(stored.record))
    return turn


class Fails:
    """A runner whose steps fail with very long messages."""

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        raise AgentShellError(error_pb2.ERROR_REASON_INVALID_REQUEST, LARGE, metadata={"what": LARGE})


def local(log: PostgresLog, runner: StepRunner) -> LocalDispatch:
    return LocalDispatch(Worker(log, {"noop": runner}, 8))


def noop(step_id: str, *needs: str, value: str = "") -> Step:
    return Step(step_id=step_id, depends_on=needs, noop=NoopStep(), input=value)


async def test_a_step_whose_input_has_no_value_any_more_when_it_begins_fails(
    log: PostgresLog, database: Database
) -> None:
    async with managed(log, database, local(log, NoopRunner())):
        turn = await ended(log, noop("a", value="'b' in outputs ? 1 / 0 : 1"), noop("b"))
    assert turn.state == TURN_STATE_FAILED
    assert turn.failure.reason == error_pb2.ERROR_REASON_PLAN_INVALID


async def test_a_step_that_is_more_than_the_workers_topic_takes_fails(log: PostgresLog, database: Database) -> None:
    """The step's input repeats the turn's input 100 times."""
    often = noop("a", value=" + ".join(["input"] * 100))
    async with managed(log, database, LogDispatch()):
        turn = await ended(log, often, text="y" * 20_000)
    assert turn.state == TURN_STATE_FAILED
    assert turn.failure.reason == error_pb2.ERROR_REASON_TOO_LARGE


async def test_a_step_that_fails_with_many_words_is_told_of_in_fewer(log: PostgresLog, database: Database) -> None:
    async with managed(log, database, local(log, Fails())):
        turn = await ended(log, noop("a"))
    assert turn.state == TURN_STATE_FAILED
    assert turn.failure.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert turn.failure.cause.message.startswith("xxx")


class Overtaking(PostgresLog):
    """A log that writes a cancellation just before the first decision of turn T's owner."""

    has_overtaken = False

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        if lease and not self.has_overtaken:
            self.has_overtaken = True
            await super().append(topic, [record_of(told(turn_cancel_requested=TurnCancelRequested()))])
        return await super().append(topic, records, lease)


async def test_what_nobody_can_read_is_buried_and_nothing_that_is_read_again_beside_it(database: Database) -> None:
    log = await Overtaking.open(database)
    for topic in (envelope.TURNS, envelope.OUTPUTS, f"{envelope.TURNS}.dlq"):
        await log.ensure_topic(Topic(topic, 1))
    requested = TurnRequested(principal_id="ann", plan=Plan(steps=[noop("a"), noop("b", "a")]))
    requested.limits.MergeFrom(LIMITS)
    poison = Record("acme/s", ids.record_id("poison"), b"\xff")
    await log.append(envelope.TURNS, [record_of(told(turn_requested=requested)), poison])
    async with managed(log, database, local(log, NoopRunner())):
        turn = await over(log, 0, 0)
    buried = await log.read(f"{envelope.TURNS}.dlq", 0, 0, 10, BOUND_SECONDS)
    await log.close()
    assert turn.state == TURN_STATE_CANCELLED
    assert [stored.record.payload for stored in buried] == [poison.payload]


async def test_what_is_more_than_one_append_takes_is_written_in_several_in_its_order(log: PostgresLog) -> None:
    lease = await log.join(envelope.TURNS, "managers", "m")
    records = [Record("k", ids.record_id(f"turn {index}"), LARGE.encode()) for index in range(20)]
    commands = [Record("k", ids.record_id(f"step {index}"), LARGE.encode()) for index in range(20)]
    acks = await Journal(log, lease).write(records, commands)
    assert [ack.offset for ack in acks] == list(range(20))
    assert await log.end_offsets(envelope.STEPS) == [20]
