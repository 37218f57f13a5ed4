"""What an owner makes of its predecessor's work: done, left undone, or still going on after the lease was lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence

import pytest
from tests.crash.test_poison import BOUND_SECONDS, LIMITS, local, managed, noop, over, told

from agentshell.db.database import Database
from agentshell.log.log import Ack, Lease, Record, Topic, partition_of
from agentshell.log.membership import fenced
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import ids
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.dispatch import LogDispatch
from agentshell.runtime.parking import Parking
from agentshell.runtime.steps.step import Emit
from agentshell.turn import envelope
from agentshell.turn.records import command_of, event_of, record_of, stamp
from kfm.error.v1 import error_pb2
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import (
    InputProvided,
    StepRequest,
    StepScheduled,
    TurnCancelRequested,
    TurnEvent,
    TurnRequested,
)
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, Plan, Step, StepResult


class Log(PostgresLog):
    """A log in which an owner of turn T is once `overtaken`, or `cut_off`, in the middle of its work."""

    overtaken = cut_off = False

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        if self.overtaken and lease and any(event_of(record).HasField("step_failed") for record in records):
            self.overtaken = False  # The next owner restarts the attempt before this one learns of it.
            again = told(step_scheduled=StepScheduled(step_id="T/a", attempt=2))
            await super().append(topic, [record_of(again)])
        return await super().append(topic, records, lease)

    async def append_all(
        self, batches: Sequence[tuple[str, Sequence[Record]]], lease: Lease | None = None
    ) -> list[list[Ack]]:
        topic, records = batches[0]
        is_aimed_at = self.cut_off and topic == envelope.TURNS
        if is_aimed_at and any(event_of(record).HasField("turn_cancelled") for record in records):
            assert lease
            self.cut_off = False  # As without transactions over topics: the first is written, the second not.
            await super().append_all(batches[:1], lease)
            raise fenced(lease)
        return await super().append_all(batches, lease)


@pytest.fixture
async def log(database: Database) -> AsyncGenerator[Log]:
    log = await Log.open(database, lease_seconds=60)
    assert isinstance(log, Log)
    for topic, partitions in ((envelope.TURNS, 2), (envelope.OUTPUTS, 2), (envelope.STEPS, 1)):
        await log.ensure_topic(Topic(topic, partitions))
    yield log
    await log.close()


class Work:
    """A runner that counts the attempts at each step. They last until `gate` is set; the first `failures` fail."""

    def __init__(self, failures: int = 0) -> None:
        self.made = Counter[str]()
        self.gate = asyncio.Event()
        self.let_go = asyncio.Queue[str]()
        self.begun = asyncio.Queue[str]()
        self._failures = failures

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        step_id = request.step.step_id
        self.made[step_id] += 1
        self.begun.put_nowait(step_id)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.let_go.put_nowait(step_id)
            raise
        if sum(self.made.values()) <= self._failures:
            raise AgentShellError(error_pb2.ERROR_REASON_INVALID_REQUEST, "no")
        return StepResult()


def asking(*steps: Step) -> TurnEvent:
    """Returns the event that requests turn T."""
    return told(turn_requested=TurnRequested(principal_id="ann", plan=Plan(steps=steps), limits=LIMITS))


PARTITION = partition_of(record_of(asking()).key, 2)


async def test_an_owner_ends_no_turn_for_a_failure_that_does_not_count(log: Log, database: Database) -> None:
    work, log.overtaken = Work(failures=1), True
    work.gate.set()
    await log.append(envelope.TURNS, [record_of(asking(noop("a")))])
    async with managed(log, database, local(log, work)):
        turn = await over(log, PARTITION, 0)
    assert turn.state == TURN_STATE_COMPLETED, turn.failure


async def test_workers_are_told_that_a_turn_has_ended_by_the_next_owner_where_the_last_one_did_not(
    log: Log, database: Database
) -> None:
    log.cut_off = True
    await log.append(envelope.TURNS, [record_of(asking(noop("a")))])
    async with managed(log, database, LogDispatch()), asyncio.timeout(BOUND_SECONDS):
        commands = await log.read(envelope.STEPS, 0, 0, 10, BOUND_SECONDS)
        await log.append(envelope.TURNS, [record_of(told(turn_cancel_requested=TurnCancelRequested()))])
        commands += await log.read(envelope.STEPS, 0, 1, 10, BOUND_SECONDS)
    assert not log.cut_off
    run, stop = (command_of(stored.record) for stored in commands)
    assert (run.run.step.step_id, stop.stop.turn_id) == ("T/a", "T")


async def test_where_partitions_move_attempts_go_on_in_those_that_stay(log: Log, database: Database) -> None:
    work, sessions = Work(), ["s", next(s for s in map(str, range(99)) if partition_of(f"acme/{s}", 2) != PARTITION)]
    for session_id in sessions:
        header = EventHeader(tenant_id="acme", session_id=session_id, correlation_id="T")
        event = TurnEvent(turn_requested=asking(noop("a")).turn_requested)
        await log.append(envelope.TURNS, [record_of(stamp(event, f"turn {session_id}", header))])
    async with managed(log, database, local(log, work)), asyncio.timeout(BOUND_SECONDS):
        begun = {await work.begun.get(), await work.begun.get()}
        lease = await log.join(envelope.TURNS, envelope.MANAGERS, "another")
        [moved] = (s for s in sessions if partition_of(f"acme/{s}", 2) in lease.partitions)
        assert await work.let_go.get() == f"turn {moved}/a"
        work.gate.set()
        turn = await over(log, 1 - lease.partitions[0], 0)
    assert begun == {f"turn {session_id}/a" for session_id in sessions}
    assert (turn.state, turn.plan.steps[0].attempt) == (TURN_STATE_COMPLETED, 1)
    assert work.made.keys() == begun
    assert work.made.total() == 2


@pytest.mark.parametrize("is_parked", [False, True])
async def test_a_turn_that_is_asked_for_once_more_by_a_log_that_drops_no_duplicates_runs_once(
    log: Log, database: Database, is_parked: bool
) -> None:
    work = Work()
    work.gate.set()
    steps = [noop("a")]
    if is_parked:
        steps.append(Step(step_id="ask", depends_on=["a"]))
        steps[-1].approval.wait.FromSeconds(60)
    asked = record_of(asking(*steps))
    await log.append(envelope.TURNS, [asked])
    async with managed(log, database, local(log, work)), asyncio.timeout(BOUND_SECONDS):
        if not is_parked:
            await over(log, PARTITION, 0)
        else:
            parking = Parking(database)
            while not await parking.list([PARTITION]):  # noqa: ASYNC110 - the database sends no notification
                await asyncio.sleep(0.01)
        await log.append(envelope.TURNS, [asked._replace(record_id=ids.record_id("once more"))])
        if is_parked:
            await log.append(envelope.TURNS, [record_of(told(input_provided=InputProvided(step_id="T/ask")))])
            await over(log, PARTITION, 0)
        header = EventHeader(tenant_id="acme", session_id="s", correlation_id="U")
        offset = (await log.end_offsets(envelope.TURNS))[PARTITION]
        later = TurnEvent(turn_requested=asking(noop("a")).turn_requested)
        await log.append(envelope.TURNS, [record_of(stamp(later, "U", header))])
        await over(log, PARTITION, offset)
    assert work.made == {"T/a": 1, "U/a": 1}
