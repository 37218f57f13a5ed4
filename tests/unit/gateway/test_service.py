"""What TurnService makes of a try that came to nothing, served by a real server."""

from __future__ import annotations

from typing import Any

from tests.contract.serving import member
from tests.unit.gateway.turn_log import TENANT

from agentshell.db.database import Database
from agentshell.gateway import admission
from agentshell.gateway.backlog import Backlog
from agentshell.gateway.service import TurnService
from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import channel
from agentshell.mesh.config import RuntimeConfig
from agentshell.turn import envelope
from agentshell.turn.records import turn_id_of
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.personality.v1.personality_service_pb2 import GetResponse, Personality
from kfm.personality.v1.personality_service_pb2_grpc import (
    PersonalityServiceServicer,
    add_PersonalityServiceServicer_to_server,
)
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import TurnEvent
from kfm.turn.v1.turn_pb2 import TURN_STATE_REQUESTED, Turn
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub, add_TurnServiceServicer_to_server

SPEC = pb.TurnSpec(session_id="s", input=Message(role=ROLE_USER, parts=[Part(text=Text(text="What is a turn?"))]))
REQUEST_ID = "r"


class Packs(PersonalityServiceServicer):
    async def Get(self, request: Any, context: Any) -> GetResponse:
        return GetResponse(personality=Personality(personality_id="guide", digest="of now"))


async def test_a_try_that_was_cut_off_before_it_was_appended_leaves_nothing_of_its_own(
    log: PostgresLog, index: TurnIndex, database: Database
) -> None:
    cut_off = Turn(turn_id=turn_id_of(TENANT, REQUEST_ID), session_id="s", state=TURN_STATE_REQUESTED)
    cut_off.create_time.FromSeconds(1)
    cut_off.personality_digest = "of then"
    await index.claim(IndexedTurn(TENANT, cut_off, 0, 0, admission.digest(SPEC)))
    async with member() as served:
        packs_of_now = Packs()  # pyright: ignore[reportAbstractUsage] - nothing else is asked of it
        packs, config = channel.connect(served.mesh_address, served.keyring), RuntimeConfig()
        service = TurnService(log, index, Backlog(database, config), packs, config, partitions=1)
        served.server.add("turn", lambda server: add_TurnServiceServicer_to_server(service, server))
        served.server.add("packs", lambda server: add_PersonalityServiceServicer_to_server(packs_of_now, server))
        client = await served.start()
        stub, key = TurnServiceStub(client), served.key(TENANT)
        request = pb.CreateTurnRequest(request_id=REQUEST_ID, turn=SPEC)
        created = (await stub.CreateTurn(request, metadata=key)).turn
        repeated = (await stub.CreateTurn(request, metadata=key)).turn
        found = (await stub.GetTurn(pb.GetTurnRequest(turn_id=created.turn_id), metadata=key)).turn
        await client.close()
        await packs.close()
    [stored] = await log.read(envelope.TURNS, 0, 0, 10, 0.0)
    appended = TurnEvent.FromString(stored.record.payload)
    assert created.create_time == appended.header.time
    assert (created.turn_id, created.personality_digest) == (cut_off.turn_id, "of now")
    assert repeated == found == created
