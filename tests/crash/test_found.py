"""Minimal reproductions of the defects that the explorer found: if one comes back, the test named after it fails."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc.aio
import pytest
from tests.crash.explorer import Explorer
from tests.crash.faulty_log import FaultyLog
from tests.crash.faulty_mesh import EMBEDDED
from tests.crash.page import Page
from tests.crash.shots import Shot
from tests.crash.workload import approval
from tests.flow.test_turns import chain

from agentshell.db.database import Database
from agentshell.log.log import Ack, Lease, Record, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.log.reach import unavailable
from agentshell.mesh import credentials, errors
from agentshell.mesh.call import Principal
from agentshell.mesh.config import PersonalityConfig, RuntimeConfig
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from agentshell.personality.service import PersonalityService
from agentshell.runtime.conclusion import Conclusion
from agentshell.runtime.dispatch import LocalDispatch
from agentshell.runtime.history import History
from agentshell.runtime.manager import Manager
from agentshell.runtime.owner import Means
from agentshell.runtime.parking import Parking
from agentshell.runtime.step_consumer import StepConsumer
from agentshell.runtime.steps.noop import NoopRunner
from agentshell.runtime.steps.step import Emit
from agentshell.runtime.sub_turns import SubTurns
from agentshell.runtime.worker import Worker
from agentshell.turn import envelope
from agentshell.turn.records import command_record, event_of, record_of, stamp
from agentshell.turn.state import apply, is_over
from kfm.error.v1 import error_pb2
from kfm.event.v1.event_pb2 import EventHeader
from kfm.personality.v1 import personality_service_pb2
from kfm.turn.v1.turn_event_pb2 import StepCommand, StepRequest, TurnCancelRequested, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import (
    TURN_STATE_CANCELLED,
    TURN_STATE_COMPLETED,
    NoopStep,
    Plan,
    Step,
    StepResult,
    Turn,
    TurnLimits,
)

_BOUND_SECONDS = 30.0
_TURN = "01TURN"
_HEADER = EventHeader(tenant_id="acme", session_id="s", correlation_id=_TURN)
_STEP_SECONDS = 0.3


@pytest.fixture
async def driver(database: Database) -> AsyncGenerator[PostgresLog]:
    """A log without faults."""
    log = await PostgresLog.open(database)
    yield log
    await log.close()


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """A page with no random faults: only what a test provokes goes wrong."""
    return Page(tmp_path / "page")


class _Overtaking(FaultyLog):
    """A log that writes a cancellation just before the owner's first decision."""

    has_overtaken = False

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        if topic == envelope.TURNS and not self.has_overtaken:
            self.has_overtaken = True
            cancel = TurnEvent(turn_cancel_requested=TurnCancelRequested(principal_id="ann"))
            await super().append(topic, [record_of(stamp(cancel, _TURN, _HEADER))])
        return await super().append(topic, records, lease)


@asynccontextmanager
async def _asked(driver: PostgresLog, log: FaultyLog, database: Database, plan: Plan) -> AsyncGenerator[None]:
    """Runs a manager over `log`, with one requested turn."""
    parking = Parking(database)
    await parking.open()
    for topic in (envelope.TURNS, envelope.OUTPUTS, envelope.STEPS):
        await driver.ensure_topic(Topic(topic, 1))
    async with grpc.aio.insecure_channel("unix:nobody") as nobody:
        conclusion = Conclusion(History(nobody), SubTurns(nobody), parking)
        dispatch = LocalDispatch(Worker(log, {"noop": NoopRunner()}, 4))
        manager = Manager(Means(log, dispatch, parking, conclusion, RuntimeConfig()))
        limits = TurnLimits(max_steps=25, max_attempts=3)
        limits.max_duration.FromSeconds(60)
        requested = TurnRequested(principal_id="ann", plan=plan, limits=limits)
        for step in requested.plan.steps:
            if step.HasField("approval"):
                step.approval.wait.FromSeconds(60)
        await driver.append(envelope.TURNS, [record_of(stamp(TurnEvent(turn_requested=requested), _TURN, _HEADER))])
        await manager.start()
        try:
            yield
        finally:
            await manager.stop()


async def test_a_cancellation_that_is_written_while_the_owner_decides_ends_the_turn(
    driver: PostgresLog, database: Database, page: Page
) -> None:
    async with _asked(driver, _Overtaking(driver, page, 0), database, approval()):
        assert (await _end(driver)).state == TURN_STATE_CANCELLED


class _Unheard(FaultyLog):
    """A log whose first reply to an owner is lost."""

    is_lost = False

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        acks = await super().append(topic, records, lease)
        if topic == envelope.TURNS and not self.is_lost:
            self.is_lost = True
            raise unavailable("confirm an append: a test dropped the reply")
        return acks


async def test_an_owner_that_does_not_hear_that_its_append_succeeded_goes_on_with_the_turn(
    driver: PostgresLog, database: Database, page: Page
) -> None:
    async with _asked(driver, _Unheard(driver, page, 0), database, chain(2)):
        assert (await _end(driver)).state == TURN_STATE_COMPLETED


class _Uncommitted(FaultyLog):
    """A log that fails the first commit."""

    is_lost = False

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        if not self.is_lost:
            self.is_lost = True
            raise unavailable("commit offsets: a test dropped the request")
        await super().commit(lease, offsets)


class _Patient:
    """A runner whose steps take a while."""

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        await asyncio.sleep(_STEP_SECONDS)
        return StepResult()


class _Endless:
    """A runner whose steps never end."""

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        await asyncio.Event().wait()
        return StepResult()


async def test_a_worker_that_cannot_commit_makes_the_attempts_that_it_was_asked_for_nevertheless(
    driver: PostgresLog, page: Page
) -> None:
    for topic in (envelope.TURNS, envelope.STEPS):
        await driver.ensure_topic(Topic(topic, 1))
    log = _Uncommitted(driver, page, 0)
    consumer = StepConsumer(log, Worker(log, {"noop": _Patient()}, 4), 1)
    await consumer.start()
    request = StepRequest(turn_id=_TURN, step=Step(step_id=f"{_TURN}/a", noop=NoopStep()), attempt=1, header=_HEADER)
    request.header.event_id = "run"
    request.deadline.FromMilliseconds(time.time_ns() // 1_000_000 + 60_000)
    await driver.append(envelope.STEPS, [command_record(StepCommand(run=request))])
    try:
        [stored] = await driver.read(envelope.TURNS, 0, 0, 1, _BOUND_SECONDS)
        assert event_of(stored.record).step_succeeded.step_id == f"{_TURN}/a"
    finally:
        await consumer.stop(0)


async def test_a_clock_that_is_set_back_does_not_put_off_an_attempt_that_is_made_again(
    driver: PostgresLog, page: Page
) -> None:
    """The request was written before the clock was set back an hour."""
    then = time.time_ns() // 1_000_000 + 3_600_000
    request = StepRequest(turn_id=_TURN, step=Step(step_id=f"{_TURN}/a", noop=NoopStep()), attempt=2, header=_HEADER)
    request.header.time.FromMilliseconds(then)
    request.start_time.FromMilliseconds(then + 100)
    request.deadline.FromMilliseconds(then + 60_000)
    done = asyncio.get_running_loop().create_future()
    worker = Worker(FaultyLog(driver, page, 0), {"noop": _Patient()}, 4)
    worker.start(request, done.set_result)
    try:
        event = (await asyncio.wait_for(done, _BOUND_SECONDS)).event
        assert event.WhichOneof("event") == "step_succeeded"
    finally:
        await worker.drain(0)


async def test_a_clock_that_is_set_back_gives_an_attempt_no_more_time(driver: PostgresLog, page: Page) -> None:
    then = time.time_ns() // 1_000_000 + 3_600_000
    request = StepRequest(turn_id=_TURN, step=Step(step_id=f"{_TURN}/a", noop=NoopStep()), attempt=1, header=_HEADER)
    request.header.time.FromMilliseconds(then)
    request.deadline.FromMilliseconds(then + 100)
    done = asyncio.get_running_loop().create_future()
    worker = Worker(FaultyLog(driver, page, 0), {"noop": _Endless()}, 4)
    worker.start(request, done.set_result)
    try:
        event = (await asyncio.wait_for(done, _BOUND_SECONDS)).event
        assert event.step_failed.failure.reason == error_pb2.ERROR_REASON_STEP_TIMEOUT
    finally:
        await worker.drain(0)


def test_a_token_that_expires_on_its_way_as_the_clock_jumps_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is final: the turn would fail, and its messages would be missing from the history."""
    files = (tmp_path / "keys.json", tmp_path / "mesh.key")
    with monkeypatch.context() as an_hour_ago:
        an_hour_ago.setattr(credentials, "time", SimpleNamespace(time=lambda: time.time() - 3600))
        token = Keyring(*files).mint(Principal("acme", "ann"))
    with pytest.raises(AgentShellError) as caught:
        Keyring(*files).verify(f"Bearer {token}")
    assert caught.value.code in errors.TRANSIENT_CODES


async def _end(log: PostgresLog) -> Turn:
    """Returns the turn folded from the log once it is over."""
    turn, offset = Turn(), 0
    async with asyncio.timeout(_BOUND_SECONDS):
        while not is_over(turn):
            for stored in await log.read(envelope.TURNS, 0, offset, 100, _BOUND_SECONDS):
                apply(turn, event_of(stored.record))
                offset = stored.offset + 1
    return turn


@pytest.mark.timeout(180)
async def test_a_sub_turn_that_was_claimed_and_not_yet_appended_when_all_was_killed_is_run_by_the_next_attempt() -> (
    None
):
    claim_of_the_sub_turn = Shot("mesh", "after claim a turn in the index", 3)  # The turn itself is requested twice.
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        async with Explorer.open(EMBEDDED, Path(directory), 1) as explorer:
            await explorer.fire([claim_of_the_sub_turn], sorts=["sub-turn"])
    assert explorer.tally.faults == []


async def test_a_personality_that_is_not_loaded_yet_is_unavailable_and_not_unknown() -> None:
    async with grpc.aio.insecure_channel("unix:nobody") as nobody:
        service = PersonalityService(PersonalityConfig(), nobody)
        request = personality_service_pb2.GetRequest(personality_id="guide", digest="sha256:of a turn under way")
        asking = asyncio.ensure_future(service.Get(request, None))  # pyright: ignore[reportArgumentType] - does not use it
        await asyncio.wait([asking], timeout=0.2)
        if asking.done():  # Waiting is fine, too.
            error = asking.exception()
            assert isinstance(error, AgentShellError)
            assert error.code in errors.TRANSIENT_CODES, "or the turn that is pinned to it fails for good"
        asking.cancel()
