"""TurnService on a real server: attempts to create a turn that failed, and turns that the log has already deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.contract.serving import member
from tests.unit.gateway.turn_log import TENANT, append, beginning, folded, told, until

from agentshell.db.database import Database
from agentshell.gateway import admission
from agentshell.gateway.backlog import Backlog
from agentshell.gateway.projector import Projector
from agentshell.gateway.service import TurnService
from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import channel, errors
from agentshell.mesh.config import RuntimeConfig
from agentshell.turn import envelope
from agentshell.turn.records import event_of, turn_id_of
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.error.v1 import error_pb2
from kfm.personality.v1.personality_service_pb2 import GetResponse, Personality
from kfm.personality.v1.personality_service_pb2_grpc import (
    PersonalityServiceServicer,
    add_PersonalityServiceServicer_to_server,
)
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import PlanCreated, StepScheduled, TurnCancelled, TurnEvent, TurnRequested, TurnWaiting
from kfm.turn.v1.turn_pb2 import TURN_STATE_REQUESTED, TURN_STATE_WAITING, ApprovalStep, Plan, Step, Turn
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub, add_TurnServiceServicer_to_server

if TYPE_CHECKING:
    from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceAsyncStub

SPEC = pb.TurnSpec(session_id="s", input=Message(role=ROLE_USER, parts=[Part(text=Text(text="What is a turn?"))]))
REQUEST_ID = "r"


class Packs(PersonalityServiceServicer):
    async def Get(self, request: Any, context: Any) -> GetResponse:
        return GetResponse(personality=Personality(personality_id="guide", digest="of now"))


@asynccontextmanager
async def serving(
    log: PostgresLog, index: TurnIndex, database: Database
) -> AsyncGenerator[tuple[TurnServiceAsyncStub, Any]]:
    """Serves the service, and yields a stub and the metadata for calls."""
    async with member() as served:
        packs_of_now = Packs()  # pyright: ignore[reportAbstractUsage] - no other RPC is called
        packs, config = channel.connect(served.mesh_address, served.keyring), RuntimeConfig()
        service = TurnService(log, index, Backlog(database, config), packs, config, partitions=1)
        served.server.add("turn", lambda server: add_TurnServiceServicer_to_server(service, server))
        served.server.add("packs", lambda server: add_PersonalityServiceServicer_to_server(packs_of_now, server))
        client = await served.start()
        yield TurnServiceStub(client), served.key(TENANT)
        await client.close()
        await packs.close()


async def test_a_try_that_was_cut_off_before_it_was_appended_leaves_nothing_of_its_own(
    log: PostgresLog, index: TurnIndex, database: Database
) -> None:
    cut_off = Turn(turn_id=turn_id_of(TENANT, REQUEST_ID), session_id="s", state=TURN_STATE_REQUESTED)
    cut_off.create_time.FromSeconds(1)
    cut_off.personality_digest = "of then"
    await index.claim(IndexedTurn(TENANT, cut_off, 0, 0, admission.digest(SPEC)))
    async with serving(log, index, database) as (stub, key):
        request = pb.CreateTurnRequest(request_id=REQUEST_ID, turn=SPEC)
        created = (await stub.CreateTurn(request, metadata=key)).turn
        repeated = (await stub.CreateTurn(request, metadata=key)).turn
        found = (await stub.GetTurn(pb.GetTurnRequest(turn_id=created.turn_id), metadata=key)).turn
    [stored] = await log.read(envelope.TURNS, 0, 0, 10, 0.0)
    appended = event_of(stored.record)
    assert created.create_time == appended.header.time
    assert (created.turn_id, created.personality_digest) == (cut_off.turn_id, "of now")
    assert repeated == found == created


ASKS = Step(step_id="ask", approval=ApprovalStep(question="May I?", wait=Duration(seconds=60)))


def waiting() -> list[TurnEvent]:
    """A turn that waits for an answer."""
    events = [
        told("T", turn_requested=TurnRequested(principal_id="ann")),
        told("T", plan_created=PlanCreated(plan=Plan(steps=[ASKS]))),
        told("T", step_scheduled=StepScheduled(step_id="ask", attempt=1)),
        told("T", turn_waiting=TurnWaiting(step_ids=["ask"])),
    ]
    for event in events:
        event.header.time.GetCurrentTime()
    return events


async def project(log: PostgresLog, index: TurnIndex, *events: TurnEvent) -> None:
    """Appends events, and returns once the index has them."""
    end = await append(log, *events)

    async def is_committed() -> bool:
        return (await log.committed(envelope.TURNS, envelope.GATEWAYS)).get(0) == end

    projecting = asyncio.create_task(Projector(log, index).run())
    await until(is_committed)
    projecting.cancel()
    await asyncio.gather(projecting, return_exceptions=True)


async def test_a_turn_that_waits_for_longer_than_the_log_retains_is_still_to_be_asked_for(
    log: PostgresLog, index: TurnIndex, database: Database
) -> None:
    events = waiting()
    await project(log, index, *events, *beginning("U", session="another"))
    assert await log.apply_retention(datetime.now(UTC) + timedelta(days=1)) > 0
    async with serving(log, index, database) as (stub, key):
        found = (await stub.GetTurn(pb.GetTurnRequest(turn_id="T"), metadata=key)).turn
    assert found == folded(*events)
    assert found.state == TURN_STATE_WAITING


async def test_an_answer_that_the_turns_end_could_not_repeat_is_refused(
    log: PostgresLog, index: TurnIndex, database: Database
) -> None:
    await project(log, index, *waiting())
    long = Message(role=ROLE_USER, parts=[Part(text=Text(text="x" * 250_000))] * 3)
    async with serving(log, index, database) as (stub, key):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ProvideInput(pb.ProvideInputRequest(turn_id="T", step_id="ask", input=long), metadata=key)
    assert errors.of(caught.value).reason == error_pb2.ERROR_REASON_TOO_LARGE


async def test_a_request_id_names_one_cancellation_while_the_turn_is_being_ended_too(
    log: PostgresLog, index: TurnIndex, database: Database
) -> None:
    await project(log, index, *waiting())
    asked = [pb.CancelTurnRequest(turn_id="T", message=message, request_id="r") for message in ("enough", "no more")]
    async with serving(log, index, database) as (stub, key):
        at_once = await asyncio.gather(*(reason_of(stub.CancelTurn(each, metadata=key)) for each in asked))
        assert sorted(at_once) == ["", "REQUEST_ID_REUSED"], "one of them was first, and it counts"
        again = [await reason_of(stub.CancelTurn(each, metadata=key)) for each in asked]
        assert again == at_once
        assert not await reason_of(stub.CancelTurn(pb.CancelTurnRequest(turn_id="T", request_id="s"), metadata=key))
        await append(log, told("T", turn_cancelled=TurnCancelled()))
        assert [await reason_of(stub.CancelTurn(each, metadata=key)) for each in asked] == at_once
        late = pb.CancelTurnRequest(turn_id="T", request_id="t")
        assert await reason_of(stub.CancelTurn(late, metadata=key)) == "TURN_STATE"


async def reason_of(call: Awaitable[object]) -> str:
    """Returns the reason why a call is refused; empty: it is not."""
    try:
        await call
    except grpc.aio.AioRpcError as refused:
        return errors.of(refused).name
    return ""
