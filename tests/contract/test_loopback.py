"""What a loopback does beyond the mesh suite (test_mesh.py): its bounds, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.contract.serving import Member, member, refusal

from agentshell.mesh import call, channel
from agentshell.mesh.call import Principal
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.personality.v1.personality_service_pb2_grpc import (
    PersonalityServiceServicer,
    PersonalityServiceStub,
    add_PersonalityServiceServicer_to_server,
)

WAIT_SECONDS = 10.0
CALLER = Principal("acme", "ann")
whose: ContextVar[str] = ContextVar("whose", default="nobody's")


@dataclass
class Probe(PersonalityServiceServicer):
    """Streams names of 1 KiB, or returns one of the requested size."""

    said: int = 0
    calls: list[str] = field(default_factory=list[str])
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:
        self.calls.append(whose.get())
        whose.set("the service's")
        request.personality_id += "!"  # Its own copy.
        if request.digest:
            return pb.GetResponse(personality=pb.Personality(display_name="x" * int(request.digest)))
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        raise AssertionError

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncGenerator[pb.WatchResponse]:
        try:
            while self.said < 1000:
                self.said += 1
                yield pb.WatchResponse(removed_personality_id="x" * 1024)
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(probe: Probe) -> AsyncGenerator[tuple[Member, Any]]:
    async with member() as served:
        peer = channel.within(served.server.loopback, served.mesh_address, served.keyring)
        served.server.add("kfm.personality.v1.PersonalityService", lambda s: _add(probe, s))
        async with await served.start():
            with call.scope(CALLER, WAIT_SECONDS):
                yield served, PersonalityServiceStub(peer)
        await peer.close()


def _add(probe: Probe, server: grpc.aio.Server) -> None:
    add_PersonalityServiceServicer_to_server(probe, server)


@pytest.fixture
def probe() -> Probe:
    return Probe()  # pyright: ignore[reportAbstractUsage] - the other methods are not called


async def test_a_service_has_its_own_context_and_its_own_copy_of_the_request(probe: Probe) -> None:
    async with serving(probe) as (_, stub):
        whose.set("the caller's")
        request = pb.GetRequest(personality_id="a", digest="3")
        assert await stub.Get(request) == pb.GetResponse(personality=pb.Personality(display_name="xxx"))
        assert (request.personality_id, whose.get(), probe.calls) == ("a", "the caller's", ["nobody's"])


async def test_a_slow_reader_holds_up_its_service_and_still_gets_everything(probe: Probe) -> None:
    async with serving(probe) as (_, stub):
        watch = stub.Watch(pb.WatchRequest())
        await watch.read()
        for _ in range(200):
            await asyncio.sleep(0)
        assert 60 < probe.said < 70  # 64 KiB
        assert len([response async for response in watch]) == 999
        assert await watch.read() is grpc.aio.EOF
        assert probe.ended.is_set()


@pytest.mark.parametrize("way", ["request", "response"])
async def test_a_message_of_more_than_4_mib_is_refused(probe: Probe, way: str) -> None:
    digest = "0" * 4_200_000 if way == "request" else "4200000"
    async with serving(probe) as (_, stub):
        error = await refusal(stub.Get(pb.GetRequest(digest=digest)))
        assert (error.code, way in error.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


async def test_a_caller_that_is_cancelled_ends_the_call_and_is_not_kept_waiting(probe: Probe) -> None:
    async with serving(probe) as (_, stub):

        async def ask() -> None:
            await stub.Get(pb.GetRequest())

        task = asyncio.create_task(ask())
        await asyncio.wait_for(probe.begun.wait(), WAIT_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(probe.ended.wait(), WAIT_SECONDS)


async def test_a_call_that_its_caller_has_cancelled_is_cancelled(probe: Probe) -> None:
    async with serving(probe) as (_, stub):
        asked = stub.Get(pb.GetRequest())
        assert (asked.cancel(), asked.cancel()) == (True, False)
        with pytest.raises(asyncio.CancelledError):
            await asked


async def test_a_server_that_stops_ends_what_is_under_way_and_takes_nothing_new(probe: Probe) -> None:
    async with serving(probe) as (served, stub):
        asked = stub.Get(pb.GetRequest())
        await asyncio.wait_for(probe.begun.wait(), WAIT_SECONDS)
        await served.server.stop(0)
        assert probe.ended.is_set()
        for refused in (asked, stub.Get(pb.GetRequest())):
            assert (await refusal(refused)).code is grpc.StatusCode.UNAVAILABLE
