"""What makes a process a member of the mesh, over a real server, with services that do what each test needs."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.instrumentation import grpc as contributed
from opentelemetry.sdk.trace import TracerProvider
from tests.contract.serving import Member, member, refusal

from agentshell.mesh import call, channel
from agentshell.mesh.call import Call, Principal
from agentshell.mesh.config import ServerConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.http import HttpServer
from agentshell.mesh.server import Server
from kfm.error.v1 import error_pb2
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.personality.v1.personality_service_pb2_grpc import (
    PersonalityServiceServicer,
    PersonalityServiceStub,
    add_PersonalityServiceServicer_to_server,
)

WAIT_SECONDS = 10.0
SERVICE = "kfm.personality.v1.PersonalityService"


@dataclass
class Probe(PersonalityServiceServicer):
    """Does what its test sets up, and records how it was called."""

    peer: grpc.aio.Channel | None = None
    calls: list[Call] = field(default_factory=list[Call])
    traces: list[int] = field(default_factory=list[int])
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    watched: str = "first"

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:
        self.calls.append(call.current())
        self.traces.append(trace.get_current_span().get_span_context().trace_id)
        match request.personality_id:
            case "defect":
                raise RuntimeError("password=hunter2")
            case "slow":
                self.begun.set()
                try:
                    await asyncio.sleep(WAIT_SECONDS)
                finally:
                    self.ended.set()
            case "chain":
                assert self.peer is not None
                return await PersonalityServiceStub(self.peer).Get(pb.GetRequest(personality_id="end"))
            case "slow-chain":
                assert self.peer is not None
                return await PersonalityServiceStub(self.peer).Get(pb.GetRequest(personality_id="slow"))
            case "refused":
                raise AgentShellError(
                    error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND, "there is none", metadata={"id": "refused"}
                )
            case _:
                pass
        return pb.GetResponse(personality=pb.Personality(personality_id=call.tenant()))

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncGenerator[pb.WatchResponse]:
        self.calls.append(call.current())
        try:
            self.begun.set()
            yield pb.WatchResponse(removed_personality_id=self.watched)
            await asyncio.Event().wait()
        finally:
            self.ended.set()


@dataclass
class Mesh:
    served: Member
    probe: Probe
    stub: Any
    peer: Any  # A service's channel to another one.


@pytest.fixture(params=["over the socket", "within the process"])
async def mesh(request: pytest.FixtureRequest) -> AsyncGenerator[Mesh]:
    probe = Probe()  # pyright: ignore[reportAbstractUsage] - List and Reload are missing on purpose
    async with member() as served:
        way = (served.mesh_address, served.keyring)
        is_within = request.param == "within the process"
        peer = channel.within(served.server.loopback, *way) if is_within else channel.connect(*way)
        probe.peer = peer
        served.server.add(SERVICE, lambda made: add_PersonalityServiceServicer_to_server(probe, made))
        async with await served.start() as to_service:
            yield Mesh(served, probe, PersonalityServiceStub(to_service), PersonalityServiceStub(peer))
        await peer.close()


@pytest.fixture
def stub(mesh: Mesh) -> Any:
    return mesh.stub


@pytest.fixture
def key(mesh: Mesh) -> tuple[tuple[str, str]]:
    return mesh.served.key()


async def _rest(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_the_credential_says_whose_the_call_is_and_the_next_service_hears_it(
    mesh: Mesh, stub: Any, key: Any
) -> None:
    answer = await stub.Get(pb.GetRequest(personality_id="chain"), metadata=key, timeout=WAIT_SECONDS)
    assert answer.personality.personality_id == "acme"
    assert [made.principal for made in mesh.probe.calls] == [Principal("acme", "ann")] * 2


async def test_a_deadline_and_a_cancellation_reach_the_next_service(mesh: Mesh, stub: Any, key: Any) -> None:
    abandoned = stub.Get(pb.GetRequest(personality_id="slow-chain"), metadata=key, timeout=WAIT_SECONDS)
    await asyncio.wait_for(mesh.probe.begun.wait(), WAIT_SECONDS)
    first, second = mesh.probe.calls
    assert first.deadline is not None
    assert second.deadline is not None
    assert second.deadline - time.monotonic() < channel.DEFAULT_TIMEOUT_SECONDS / 2, "not that of a call without one"
    abandoned.cancel()
    await asyncio.wait_for(mesh.probe.ended.wait(), WAIT_SECONDS)
    mesh.probe.ended.clear()
    mesh.probe.begun.clear()
    error = await refusal(stub.Get(pb.GetRequest(personality_id="slow-chain"), metadata=key, timeout=1.0))
    assert error.name == "DEADLINE_EXCEEDED"
    if mesh.probe.begun.is_set():  # Otherwise time ran out before it got that far.
        await asyncio.wait_for(mesh.probe.ended.wait(), WAIT_SECONDS)


async def test_a_call_inside_the_mesh_needs_a_deadline(mesh: Mesh, stub: Any) -> None:
    token = (("authorization", f"Bearer {mesh.served.keyring.mint(Principal('acme', 'ann'))}"),)
    error = await refusal(stub.Get(pb.GetRequest(), metadata=token))
    assert (error.name, error.code) == ("DEADLINE_REQUIRED", grpc.StatusCode.INVALID_ARGUMENT)
    assert (await stub.Get(pb.GetRequest(), metadata=token, timeout=WAIT_SECONDS)).personality.personality_id == "acme"


async def test_a_caller_without_a_deadline_gives_the_calls_behind_it_one(mesh: Mesh, stub: Any, key: Any) -> None:
    await stub.Get(pb.GetRequest(personality_id="chain"), metadata=key)
    assert [made.deadline is None for made in mesh.probe.calls] == [True, False]


async def test_a_broken_rule_of_the_contract_is_refused_by_field(stub: Any, key: Any) -> None:
    error = await refusal(stub.Get(pb.GetRequest(personality_id="x" * 200), metadata=key))
    assert (error.name, [name for name, _ in error.violations]) == ("INVALID_REQUEST", ["personality_id"])


async def test_an_error_keeps_its_reason_and_a_defect_keeps_its_words_to_itself(stub: Any, key: Any) -> None:
    error = await refusal(stub.Get(pb.GetRequest(personality_id="refused"), metadata=key))
    assert (error.name, error.message, error.metadata) == ("PERSONALITY_NOT_FOUND", "there is none", {"id": "refused"})
    error = await refusal(stub.Get(pb.GetRequest(personality_id="defect"), metadata=key))
    assert (error.name, error.code) == ("INTERNAL", grpc.StatusCode.INTERNAL)
    assert "hunter2" not in error.message


async def test_what_a_service_does_not_have_and_what_is_too_large_is_refused(stub: Any, key: Any) -> None:
    error = await refusal(stub.List(pb.ListRequest(), metadata=key))
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    error = await refusal(stub.Get(pb.GetRequest(digest="x" * 5_000_000), metadata=key))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_method_that_nothing_serves_is_refused_by_its_name(mesh: Mesh) -> None:
    async with grpc.aio.insecure_channel(mesh.served.server.address) as channel:
        for method in ("/kfm.turn.v1.TurnService/Nothing", "/kfm.turn.v2.TurnService/GetTurn", "/nothing"):
            error = await refusal(cast("Any", channel.unary_unary(method))(b"", timeout=WAIT_SECONDS))
            assert (error.name, error.code) == ("NOT_IMPLEMENTED", grpc.StatusCode.UNIMPLEMENTED)
            assert repr(method) in error.message


async def test_a_draining_server_says_so_and_ends_every_watch_but_not_other_calls(
    mesh: Mesh, stub: Any, key: Any
) -> None:
    async with grpc.aio.insecure_channel(mesh.served.server.address) as made:
        health: Any = health_pb2_grpc.HealthStub(made)
        watch = stub.Watch(pb.WatchRequest(), metadata=key)
        assert (await watch.read()).removed_personality_id == "first"
        beating = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await beating.read()).status == health_pb2.HealthCheckResponse.SERVING
        await mesh.served.server.drain()
        for stream in (watch, beating):
            assert (await refusal(_rest(stream))).name == "SERVICE_UNAVAILABLE"
        await asyncio.wait_for(mesh.probe.ended.wait(), WAIT_SECONDS)
        status = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await stub.Get(pb.GetRequest(), metadata=key)


async def test_an_abandoned_stream_ends_its_service(mesh: Mesh, stub: Any, key: Any) -> None:
    watch = stub.Watch(pb.WatchRequest(), metadata=key)
    await watch.read()
    watch.cancel()
    await asyncio.wait_for(mesh.probe.ended.wait(), WAIT_SECONDS)


async def test_the_meshs_socket_is_for_its_owner_alone(mesh: Mesh) -> None:
    mode = (await asyncio.to_thread(Path(mesh.served.mesh_address.removeprefix("unix:")).stat)).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_a_taken_address_is_named_with_its_key(mesh: Mesh, tmp_path: Path) -> None:
    second = Server(ServerConfig(address=mesh.served.server.address), f"unix:{tmp_path}/m.sock", mesh.served.keyring)
    with pytest.raises(AgentShellError, match=mesh.served.server.address) as caught:
        await second.start()
    assert caught.value.metadata["key"] == "server.address"
    await second.stop(0)
    http = HttpServer("127.0.0.1:0")
    try:
        with pytest.raises(AgentShellError, match=http.address) as caught:
            HttpServer(http.address)
        assert caught.value.metadata["key"] == "server.http_address"
    finally:
        http.close()


async def test_nobody_calls_on_nobodys_behalf(mesh: Mesh) -> None:
    with pytest.raises(AgentShellError) as caught:
        await mesh.peer.Get(pb.GetRequest())
    assert caught.value.reason == error_pb2.ERROR_REASON_CREDENTIAL_INVALID


async def test_a_stream_carries_the_caller_too_and_ends_when_it_is_abandoned(mesh: Mesh) -> None:
    with call.scope(Principal("acme", "ann"), WAIT_SECONDS):
        watch = mesh.peer.Watch(pb.WatchRequest())
    assert (await anext(aiter(watch))).removed_personality_id == "first"
    watch.cancel()
    await asyncio.wait_for(mesh.probe.ended.wait(), WAIT_SECONDS)
    assert [made.principal for made in mesh.probe.calls] == [Principal("acme", "ann")]


async def test_a_watch_that_is_amid_a_response_when_the_server_drains_ends_after_it(mesh: Mesh) -> None:
    mesh.probe.watched = "more than may be on its way to who does not read" * 50_000
    with call.scope(Principal("acme", "ann"), WAIT_SECONDS):
        watch = mesh.peer.Watch(pb.WatchRequest())
        await asyncio.wait_for(mesh.probe.begun.wait(), WAIT_SECONDS)
        await mesh.served.server.drain()
        assert (await watch.read()).removed_personality_id == mesh.probe.watched
        assert (await refusal(watch.read())).name == "SERVICE_UNAVAILABLE"


async def test_between_services_too_a_deadline_a_drained_watch_and_a_missing_method_are_errors(mesh: Mesh) -> None:
    with call.scope(Principal("acme", "ann"), WAIT_SECONDS):
        late = mesh.peer.Get(pb.GetRequest(personality_id="slow"), timeout=0.2)
        assert (await refusal(late)).name == "DEADLINE_EXCEEDED"
        assert (await refusal(mesh.peer.List(pb.ListRequest()))).code is grpc.StatusCode.UNIMPLEMENTED
        watch = aiter(mesh.peer.Watch(pb.WatchRequest()))
        assert (await anext(watch)).removed_personality_id == "first"
        await mesh.served.server.drain()
        assert (await refusal(anext(watch))).name == "SERVICE_UNAVAILABLE"


async def test_a_trace_of_the_contributed_instrumentation_goes_through_two_services(mesh: Mesh, key: Any) -> None:
    provider = TracerProvider()
    interceptors: Any = contributed.aio_client_interceptors(tracer_provider=provider)
    async with grpc.aio.insecure_channel(mesh.served.server.address, interceptors=interceptors) as made:
        with provider.get_tracer("peer").start_as_current_span("caller") as span:
            stub: Any = PersonalityServiceStub(made)
            await stub.Get(pb.GetRequest(personality_id="chain"), metadata=key, timeout=WAIT_SECONDS)
    assert mesh.probe.traces == [span.get_span_context().trace_id] * 2
