"""An attempt's output is in the log no later than its result, and the last of it is appended with the result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable

import pytest

from agentshell.db.database import Database
from agentshell.log.log import Log, Record, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.runtime.inbox import Made
from agentshell.runtime.step_consumer import StepConsumer
from agentshell.runtime.steps.step import Emit
from agentshell.runtime.worker import Worker
from agentshell.turn import envelope
from agentshell.turn.records import command_record, delta_of
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import OutputDelta, StepCommand, StepRequest
from kfm.turn.v1.turn_pb2 import NoopStep, Step, StepResult

BOUND_SECONDS = 30.0


@pytest.fixture
async def log(database: Database) -> AsyncGenerator[Log]:
    log = await PostgresLog.open(database)
    await log.ensure_topic(Topic(envelope.TURNS, 1))
    await log.ensure_topic(Topic(envelope.STEPS, 1))
    await log.ensure_topic(Topic(envelope.OUTPUTS, 1, durability="relaxed"))
    yield log
    await log.close()


class Speaker:
    """A runner that says something, goes on once the log has it, and ends with its last words."""

    def __init__(self, log: Log, *last: str) -> None:
        self._log = log
        self._last = last

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        await emit(["first"])
        await self._log.read(envelope.OUTPUTS, 0, 0, 1, BOUND_SECONDS)
        for text in self._last:
            await emit([text])
        return StepResult()


def asked() -> StepRequest:
    step = Step(step_id="1/a", noop=NoopStep())
    request = StepRequest(turn_id="1", step=step, attempt=1, header=EventHeader(tenant_id="acme", session_id="s"))
    request.deadline.FromNanoseconds(time.time_ns() + 60_000_000_000)
    return request


async def made(log: Log, *last: str) -> Made:
    done = asyncio.get_running_loop().create_future()
    Worker(log, {"noop": Speaker(log, *last)}, 1).start(asked(), done.set_result)
    return await asyncio.wait_for(done, BOUND_SECONDS)


def texts(records: Iterable[Record]) -> list[str]:
    return [text for record in records for text in delta_of(record, OutputDelta()).texts]


async def logged(log: Log) -> list[str]:
    return texts(stored.record for stored in await log.read(envelope.OUTPUTS, 0, 0, 10, 0.0))


async def test_the_last_words_of_an_attempt_are_left_to_the_append_of_its_result(log: Log) -> None:
    ended = await made(log, "more", "last")
    assert (await logged(log), texts(ended.said)) == (["first", "more"], ["last"])
    assert ended.event.step_succeeded.result.delta_count == 3


@pytest.mark.parametrize("last", [(), ("x" * 100_000,)])
async def test_the_log_has_all_of_it_by_the_end_where_it_said_nothing_last_or_very_much(
    log: Log, last: tuple[str, ...]
) -> None:
    ended = await made(log, *last)
    assert (await logged(log), texts(ended.said)) == (["first", *last], [])


async def test_a_worker_of_the_log_appends_last_words_and_the_result_together(log: Log) -> None:
    consumer = StepConsumer(log, Worker(log, {"noop": Speaker(log, "last")}, 1), 1)
    await consumer.start()
    try:
        await log.append(envelope.STEPS, [command_record(StepCommand(run=asked()))])
        assert await log.read(envelope.TURNS, 0, 0, 1, BOUND_SECONDS)
        assert await logged(log) == ["first", "last"]
    finally:
        await consumer.stop(0)
