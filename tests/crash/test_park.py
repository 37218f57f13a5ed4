"""A turn that goes on at the moment in which it is about to be parked, and loses its owner then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.conftest import create_database, drop_database
from tests.crash.test_poison import BOUND_SECONDS, LIMITS, local, managed, noop, told
from tests.crash.test_takeover import Work

from agentshell.db.database import Database
from agentshell.log.log import Ack, Lease, Record, StoredRecord, Topic
from agentshell.log.membership import fenced
from agentshell.log.postgres import PostgresLog
from agentshell.turn import envelope
from agentshell.turn.records import event_of, record_of, stamp
from agentshell.turn.state import apply, is_over
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import TurnCancelRequested, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import TURN_STATE_CANCELLED, Plan, Step, Turn

U_HEADER = EventHeader(tenant_id="acme", session_id="u", correlation_id="U")


class Log(PostgresLog):
    """Requests turn U as T begins to wait, cancels T while U's plan is written, and fences the owner as T ends."""

    parking: Database
    fences = True

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        if lease is None or topic != envelope.TURNS:
            return await super().append(topic, records, lease)
        events = [event_of(record) for record in records]
        if self.fences and any(event.HasField("turn_cancelled") for event in events):
            self.fences = False
            await asyncio.sleep(0)  # What parks the turn, if anything does, has asked for the only connection by then.
            async with self.parking.connection():
                raise fenced(lease)
        if any(event.turn_id == "U" and event.HasField("plan_created") for event in events):
            cancel = record_of(told(turn_cancel_requested=TurnCancelRequested()))
            await super().append(topic, [cancel])
            await self._cancel_read.wait()
        acks = await super().append(topic, records, lease)
        if any(event.HasField("turn_waiting") for event in events):
            await super().append(topic, [record_of(stamp(request(noop("a")), "U", U_HEADER))])
        return acks

    async def poll(self, lease: Lease, limit: int, wait: float) -> list[StoredRecord]:
        stored = await super().poll(lease, limit, wait)
        kinds = {event_of(each.record).WhichOneof("event") for each in stored}
        if "turn_waiting" in kinds and not any(event_of(each.record).turn_id == "U" for each in stored):
            stored += await super().poll(lease, limit, wait)  # T waits, and U is requested, in one batch.
        if "turn_cancel_requested" in kinds:
            self._cancel_read.set()
        return stored

    def begin(self, parking: Database) -> None:
        """Makes it ready."""
        self.parking, self._cancel_read = parking, asyncio.Event()


def request(*steps: Step) -> TurnEvent:
    """Returns the event that requests a turn."""
    return TurnEvent(turn_requested=TurnRequested(principal_id="ann", plan=Plan(steps=steps), limits=LIMITS))


async def ended(log: PostgresLog, turn_id: str) -> Turn:
    """Returns a turn once it is over."""
    turn, offset = Turn(), 0
    while not is_over(turn):
        for stored in await log.read(envelope.TURNS, 0, offset, 100, BOUND_SECONDS):
            offset = stored.offset + 1
            if (event := event_of(stored.record)).turn_id == turn_id:
                apply(turn, event)
    return turn


async def test_a_turn_that_is_cancelled_as_it_is_about_to_be_parked_ends_though_its_owner_does_not_say_so(
    database: Database, postgres_url: str
) -> None:
    url = await create_database(postgres_url)
    parking = await Database.open(url, 1)
    log = await Log.open(database, lease_seconds=60)
    assert isinstance(log, Log)
    log.begin(parking)
    work = Work()
    work.gate.set()
    question = Step(step_id="ask")
    question.approval.wait.FromSeconds(60)
    try:
        for topic in (envelope.TURNS, envelope.OUTPUTS, envelope.STEPS):
            await log.ensure_topic(Topic(topic, 1))
        await log.append(envelope.TURNS, [record_of(told(turn_requested=request(question).turn_requested))])
        async with managed(log, parking, local(log, work)), asyncio.timeout(BOUND_SECONDS):
            assert (await ended(log, "T")).state == TURN_STATE_CANCELLED
        assert not log.fences
    finally:
        await log.close()
        await parking.close()
        await drop_database(postgres_url, url)
