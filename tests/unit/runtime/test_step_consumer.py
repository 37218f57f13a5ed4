"""A worker among others: what it keeps when partitions move, and what does not stop it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping

import pytest

from agentshell.content import text_of
from agentshell.db.database import Database
from agentshell.log.log import Lease, Topic, partition_of
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import call
from agentshell.runtime import step_consumer
from agentshell.runtime.inbox import Made
from agentshell.runtime.step_consumer import StepConsumer
from agentshell.runtime.steps.step import Emit
from agentshell.runtime.worker import Worker
from agentshell.turn import envelope
from agentshell.turn.records import command_record, event_of, record_of, stamp
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import StepCommand, StepRequest, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import PRIORITY_HIGH, PRIORITY_NORMAL, NoopStep, Priority, Step, StepResult

BOUND_SECONDS = 30.0


class Log(PostgresLog):
    """A log that signals empty commits, a member's heartbeat."""

    has_lived: asyncio.Event

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        await super().commit(lease, offsets)
        if not offsets:
            self.has_lived.set()


@pytest.fixture
async def log(database: Database) -> AsyncGenerator[Log]:
    log = await Log.open(database, lease_seconds=60)
    assert isinstance(log, Log)
    log.has_lived = asyncio.Event()
    await log.ensure_topic(Topic(envelope.TURNS, 1))
    await log.ensure_topic(Topic(envelope.STEPS, 2))
    await log.ensure_topic(Topic(f"{envelope.STEPS}.dlq", 2))
    yield log
    await log.close()


class Work:
    """A runner whose attempts last until released; it counts the attempts at each step."""

    def __init__(self) -> None:
        self.made = Counter[str]()
        self.asked: list[str] = []
        self.seconds: list[float] = []
        self.gate = asyncio.Event()
        self._begun = asyncio.Condition()

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        self.made[request.turn_id] += 1
        self.asked.append(text_of(request.input))
        self.seconds.append(call.current().remaining() or 0.0)
        async with self._begun:
            self._begun.notify_all()
        await self.gate.wait()
        return StepResult()

    async def wait(self, attempts: int) -> None:
        """Waits until `count` attempts have begun."""
        async with asyncio.timeout(BOUND_SECONDS), self._begun:
            await self._begun.wait_for(lambda: self.made.total() >= attempts)


def consumer(log: Log, work: Work) -> StepConsumer:
    return StepConsumer(log, Worker(log, {"noop": work}, 8), 1)


def in_partition(partition: int) -> str:
    """Returns a turn whose commands go to a partition of `agent.steps`."""
    return next(turn for turn in map(str, range(100)) if partition_of(turn, 2) == partition)


async def ask(log: Log, turn_id: str, **fields: Message) -> None:
    header = EventHeader(tenant_id="acme", session_id="s", event_id=f"run {turn_id} {sorted(fields)}")
    step = Step(step_id=f"{turn_id}/a", noop=NoopStep())
    request = StepRequest(turn_id=turn_id, step=step, attempt=1, header=header)
    if fields:
        request.dependencies.append(fields["dependency"])
        request.output_offsets.append(99)  # Nothing is there.
    request.deadline.FromNanoseconds(time.time_ns() + 60_000_000_000)
    await log.append(envelope.STEPS, [command_record(StepCommand(run=request))])


def asked(turn_id: str, tenant_id: str, priority: Priority.ValueType = PRIORITY_NORMAL) -> StepRequest:
    header = EventHeader(tenant_id=tenant_id, session_id="s")
    step = Step(step_id=f"{turn_id}/a", noop=NoopStep())
    request = StepRequest(turn_id=turn_id, step=step, attempt=1, header=header, priority=priority)
    request.deadline.FromNanoseconds(time.time_ns() + 60_000_000_000)
    return request


async def results(log: Log, count: int) -> list[str]:
    """Returns the turns of the first `count` results."""
    async with asyncio.timeout(BOUND_SECONDS):
        while len(records := await log.read(envelope.TURNS, 0, 0, count, 0.0)) < count:
            await log.read(envelope.TURNS, 0, len(records), count, BOUND_SECONDS)
    return [event_of(stored.record).turn_id for stored in records]


async def test_a_worker_goes_on_with_what_is_in_the_partitions_that_it_keeps(log: Log) -> None:
    turns = [in_partition(0), in_partition(1)]
    first, second = Work(), Work()
    workers = [consumer(log, first), consumer(log, second)]
    try:
        await workers[0].start()
        for turn_id in turns:
            await ask(log, turn_id)
        await first.wait(2)
        await workers[1].start()
        await second.wait(1)
        [moved] = second.made
        first.gate.set()
        second.gate.set()
        assert sorted(await results(log, 2)) == sorted(turns)
        await ask(log, "another")  # Either worker may get it; by then the first one has continued.
        await results(log, 3)
        assert first.made.keys() | second.made.keys() == {*turns, "another"}
        assert (first.made + second.made) == {**dict.fromkeys(turns, 1), moved: 2, "another": 1}
    finally:
        for worker in workers:
            await worker.stop(0)


async def test_tenants_take_turns_at_a_workers_places_and_what_is_urgent_comes_first(log: Log) -> None:
    work, ended = Work(), asyncio.Queue[str]()
    worker = Worker(log, {"noop": work}, 1)
    for request in (asked("1", "flood"), asked("2", "flood"), asked("3", "flood", PRIORITY_HIGH), asked("4", "small")):
        worker.start(request, lambda made: ended.put_nowait(made.event.turn_id))
    await work.wait(1)  # By now the others wait for the only place.
    work.gate.set()
    async with asyncio.timeout(BOUND_SECONDS):
        assert [await ended.get() for _ in range(4)] == ["1", "3", "4", "2"]


async def test_the_time_of_an_attempt_counts_from_when_it_has_a_place(log: Log) -> None:
    work, ended = Work(), asyncio.Queue[Made]()
    worker = Worker(log, {"noop": work}, 1)
    for request in (asked("1", "acme"), asked("2", "acme")):
        request.step.timeout.FromSeconds(30)
        worker.start(request, ended.put_nowait)
    await work.wait(1)
    await asyncio.sleep(1.0)  # The second waits.
    work.gate.set()
    async with asyncio.timeout(BOUND_SECONDS):
        assert all([(await ended.get()).event.HasField("step_succeeded") for _ in range(2)])
    assert 29.0 < work.seconds[1] <= 30.0


async def test_an_input_that_is_not_repeated_is_looked_up(log: Log) -> None:
    header = EventHeader(tenant_id="acme", session_id="s")
    requested = TurnRequested(input=Message(role=ROLE_USER, parts=[Part(text=Text(text="What?"))]))
    await log.append(envelope.TURNS, [record_of(stamp(TurnEvent(turn_requested=requested), "1", header))])
    request = asked("1", "acme")
    request.header.event_id, request.input_offset = "run", 0
    work = Work()
    worker = consumer(log, work)
    await worker.start()
    try:
        await log.append(envelope.STEPS, [command_record(StepCommand(run=request))])
        await work.wait(1)
        assert work.asked == ["What?"]
    finally:
        await worker.stop(0)


async def test_a_command_that_cannot_be_carried_out_is_buried_and_holds_up_no_other(log: Log) -> None:
    work = Work()
    work.gate.set()
    worker = consumer(log, work)
    await worker.start()
    try:
        await ask(log, in_partition(0), dependency=Message())
        await ask(log, in_partition(0))
        assert await results(log, 1) == [in_partition(0)]
        [dead] = await log.read(f"{envelope.STEPS}.dlq", 0, 0, 10, BOUND_SECONDS)
        assert dead.record.headers["dlq-reason"].startswith("ValueError")
    finally:
        await worker.stop(0)


async def test_a_worker_that_can_take_no_more_says_that_it_lives(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_consumer, "_MAX_OPEN", 1)
    work = Work()
    worker = consumer(log, work)
    await worker.start()
    try:
        await ask(log, in_partition(0))
        await asyncio.wait_for(log.has_lived.wait(), BOUND_SECONDS)
        work.gate.set()
        assert await results(log, 1) == [in_partition(0)]
    finally:
        await worker.stop(0)


async def test_a_worker_full_of_steps_that_wait_for_turns_takes_the_steps_of_those(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_consumer, "_MAX_OPEN", 1)
    above, below = Work(), Work()
    below.gate.set()
    worker = StepConsumer(log, Worker(log, {"agent": above, "noop": below}, 8), 1)
    waits = asked("above", "acme")
    waits.header.event_id = "run above"
    waits.step.agent.personality_id = "another"
    await worker.start()
    try:
        await log.append(envelope.STEPS, [command_record(StepCommand(run=waits))])
        await above.wait(1)
        await ask(log, in_partition(0))
        assert await results(log, 1) == [in_partition(0)]
    finally:
        await worker.stop(0)
