"""What every caller may rely on in every RPC: credentials, rich errors, isolation, discovery."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import sys
import urllib.request
import uuid
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.flow.mesh import Mesh
from tests.flow.test_turns import create, spec

from agentshell.db.database import Database
from agentshell.log.dead_letter import SUFFIX
from agentshell.log.log import Record, partition_of
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import errors, ids
from agentshell.turn import envelope
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Money, Part, Text
from kfm.memory.v1 import memory_service_pb2 as memory
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.tool.v1.tool_service_pb2 import ListToolsRequest
from kfm.tool.v1.tool_service_pb2_grpc import ToolServiceStub
from kfm.turn.v1 import turn_service_pb2 as turns
from kfm.turn.v1.turn_pb2 import STEP_STATE_SUCCEEDED, ApprovalStep, NoopStep, ParentStep, Plan, Step, TurnLimits
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client, XenocommError

WAIT_SECONDS = 60.0
_CURRENCY = "turn.limits.max_cost.currency_code"
_WHERE = {"namespace": "user/nobody", "session_id": "nobody", "turn_id": "nothing", "personality_id": "guide"}
ROOT = Path(__file__).parents[2]
PACKAGES = {
    "admin": "gateway",
    "turn": "gateway",
    "provider": "provider",
    "memory": "memory",
    "personality": "personality",
    "tool": "tool",
}


def methods() -> list[tuple[str, Any]]:
    """Returns every RPC of the contract, with the service that answers it."""
    found: list[tuple[str, Any]] = []
    for package, service in PACKAGES.items():
        importlib.import_module(f"kfm.{package}.v1.{package}_service_pb2")
        name = f"kfm.{package}.v1.{package.capitalize()}Service"
        found += [(service, method) for method in descriptor_pool.Default().FindServiceByName(name).methods]
    return found


async def call(channel: grpc.aio.Channel, method: Any, request: Any, **options: Any) -> list[Any]:
    """Calls any RPC with one request and returns its responses."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    answer = message_factory.GetMessageClass(method.output_type).FromString
    stub = getattr(channel, kind)(
        path, request_serializer=type(request).SerializeToString, response_deserializer=answer
    )
    made = stub([request] if method.client_streaming else request, timeout=WAIT_SECONDS, **options)
    return [response async for response in made] if method.server_streaming else [await made]


def empty(method: Any) -> Any:
    return message_factory.GetMessageClass(method.input_type)()


@pytest.mark.parametrize(("service", "method"), methods(), ids=lambda value: getattr(value, "full_name", value))
async def test_no_rpc_answers_without_a_credential(mesh: Mesh, service: str, method: Any) -> None:
    async with grpc.aio.insecure_channel(mesh.address_of(service)) as channel:
        for metadata in ((), (("authorization", "Bearer ask_no_key"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, method, empty(method), metadata=metadata)
            error = errors.of(caught.value)
            assert (caught.value.code(), error.name) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID")


async def test_every_list_refuses_a_negative_page_and_the_token_of_another(mesh: Mesh) -> None:
    key = (("authorization", f"Bearer {mesh.key('lister')}"),)
    async with grpc.aio.insecure_channel(mesh.address_of("tool")) as channel:
        token = (await ToolServiceStub(channel).ListTools(ListToolsRequest(page_size=1), metadata=key)).next_page_token
    assert token
    refusals: dict[str, list[str]] = {}
    for service, method in methods():
        request = empty(method)
        if "page_size" not in method.input_type.fields_by_name:
            continue
        for field, value in _WHERE.items():
            if field in method.input_type.fields_by_name:
                setattr(request, field, value)
        async with grpc.aio.insecure_channel(mesh.address_of(service)) as channel:
            for request.page_size, request.page_token in ((-1, ""), (2**31 - 1, token)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(channel, method, request, metadata=key)
                error = errors.of(caught.value)
                refusals.setdefault(method.full_name, []).append(" ".join((error.name, *dict(error.violations))))
    lists = {name: ["INVALID_REQUEST page_size", "PAGE_TOKEN_INVALID page_token"] for name in refusals}
    lists["kfm.admin.v1.AdminService.ListDeadLetters"][1] = "PERMISSION_DENIED"
    lists["kfm.turn.v1.TurnService.ListTurnEvents"][1] = "TURN_NOT_FOUND"
    assert refusals == lists


def test_the_documentation_names_every_rpc() -> None:
    named = (ROOT / "personalities/guide/knowledge/contracts.md").read_text()
    assert [method.full_name for _, method in methods() if f"`{method.name}`" not in named] == []


def test_a_request_id_may_be_equally_long_wherever_it_is_taken() -> None:
    requests = [method.input_type.fields_by_name for _, method in methods()]
    taken = [
        fields["request_id"].GetOptions().Extensions[validate_pb2.field]
        for fields in requests
        if "request_id" in fields
    ]
    assert {rules.string.max_len for rules in taken} == {256}


def test_no_enum_in_a_request_takes_a_number_that_the_contract_does_not_know() -> None:
    lax: set[str] = set()
    todo, seen = [method.input_type for _, method in methods()], set[str]()
    while todo:
        message = todo.pop()
        is_answer = message.full_name == "kfm.error.v1.Failure"
        if message.full_name in seen or is_answer or not message.full_name.startswith("kfm."):
            continue
        seen.add(message.full_name)
        todo += [field.message_type for field in message.fields if field.message_type]
        for field in message.fields:
            rules = field.GetOptions().Extensions[validate_pb2.field]
            if field.enum_type and not (rules.enum.defined_only or rules.repeated.items.enum.defined_only):
                lax.add(field.full_name)
    assert lax == {"kfm.turn.v1.Step.state"}  # Output only: a plan that sets it is refused.


def _silent() -> turns.TurnSpec:
    return spec("  ")


def _from_assistant() -> turns.TurnSpec:
    return turns.TurnSpec(input=Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text="hi"))]))


def _cyclic() -> turns.TurnSpec:
    steps = [Step(step_id=a, depends_on=[b], noop=NoopStep()) for a, b in (("a", "b"), ("b", "a"))]
    return spec(plan=Plan(steps=steps))


def _done_already() -> turns.TurnSpec:
    return spec(plan=Plan(steps=[Step(step_id="a", noop=NoopStep(), state=STEP_STATE_SUCCEEDED)]))


def _asks_for_anything() -> turns.TurnSpec:
    approval = ApprovalStep(question="May I?")
    approval.schema.update({"type": "nothing"})
    return spec(plan=Plan(steps=[Step(step_id="a", approval=approval)]))


def _too_deep() -> turns.TurnSpec:
    return spec(parent=ParentStep(turn_id="T", step_id="T/a", depth=5))


def _misnamed_step() -> turns.TurnSpec:
    return spec(plan=Plan(steps=[Step(step_id="no spaces", noop=NoopStep())]))


def _oversize() -> turns.TurnSpec:
    parts = [Part(text=Text(text="x" * 200_000)) for _ in range(4)]
    return turns.TurnSpec(input=Message(role=ROLE_USER, parts=parts))


@pytest.mark.parametrize(
    ("bad", "reason", "field"),
    [
        (turns.TurnSpec, "INVALID_REQUEST", "turn.input"),
        (_silent, "INVALID_REQUEST", "turn.input.parts"),
        (_from_assistant, "INVALID_REQUEST", "turn.input.role"),
        (_misnamed_step, "INVALID_REQUEST", "turn.plan.steps[0].step_id"),
        (_cyclic, "PLAN_INVALID", "turn.plan.steps"),
        (_done_already, "PLAN_INVALID", "turn.plan.steps[0].state"),
        (_asks_for_anything, "PLAN_INVALID", "turn.plan.steps[0].approval.schema"),
        (lambda: spec(limits=TurnLimits(max_cost=Money(amount_micros=1))), "INVALID_REQUEST", _CURRENCY),
        (_too_deep, "DEPTH_LIMIT", ""),
        (_oversize, "TOO_LARGE", ""),
        (lambda: spec(personality_id="nobody"), "PERSONALITY_NOT_FOUND", ""),
    ],
)
async def test_a_bad_turn_is_refused_by_name_and_nothing_is_begun(
    client: Client, bad: Callable[[], turns.TurnSpec], reason: str, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(client, bad(), uuid.uuid4().hex)
    error = errors.of(caught.value)
    assert error.name == reason
    assert [name for name, _ in error.violations[:1]] == ([field] if field else [])
    assert [turn async for turn in client.list()] == []


async def test_unknown_turns_sessions_cursors_and_tokens_are_refused_by_name(client: Client) -> None:
    stub = TurnServiceStub(client.channel)
    turn_id = await create(client, spec())
    refused: list[tuple[Any, str]] = [
        (stub.GetTurn(turns.GetTurnRequest(turn_id="nothing")), "TURN_NOT_FOUND"),
        (stub.CancelTurn(turns.CancelTurnRequest(turn_id="nothing")), "TURN_NOT_FOUND"),
        (stub.ListTurns(turns.ListTurnsRequest(session_id="nothing")), "SESSION_NOT_FOUND"),
        (stub.ListTurns(turns.ListTurnsRequest(page_token="nothing")), "PAGE_TOKEN_INVALID"),
        (stub.ListTurnEvents(turns.ListTurnEventsRequest(turn_id=turn_id, page_token="e30")), "PAGE_TOKEN_INVALID"),
    ]
    for made, reason in refused:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made
        assert errors.of(caught.value).name == reason
    with pytest.raises(XenocommError) as refusal:
        _ = [update async for update in client.watch(turn_id, "nothing")]
    assert refusal.value.reason == "CURSOR_INVALID"


async def test_a_cancellation_that_is_repeated_gets_its_first_answer_when_the_turn_is_over(client: Client) -> None:
    stub = TurnServiceStub(client.channel)
    question = Step(step_id="ask", approval=ApprovalStep(question="Go on?"))
    turn_id = await create(client, spec(plan=Plan(steps=[question])))
    cancel = turns.CancelTurnRequest(turn_id=turn_id, message="enough", request_id="1")
    assert await stub.CancelTurn(cancel) == turns.CancelTurnResponse()
    told = [update.event.WhichOneof("event") async for update in client.watch(turn_id)]
    assert told.count("turn_cancel_requested") == 1
    assert told[-1] == "turn_cancelled"
    assert await stub.CancelTurn(cancel) == turns.CancelTurnResponse()
    refused = {
        "REQUEST_ID_REUSED": turns.CancelTurnRequest(turn_id=turn_id, message="no more", request_id="1"),
        "TURN_STATE": turns.CancelTurnRequest(turn_id=turn_id, message="enough", request_id="2"),
    }
    for reason, request in refused.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CancelTurn(request)
        assert errors.of(caught.value).name == reason


async def test_no_rpc_shows_one_tenants_turns_to_another(mesh: Mesh) -> None:
    async with mesh.client("owner") as ann, mesh.client("stranger") as bob:
        turn_id = await create(ann, spec(session_id="private"))
        strange = [
            bob.get(turn_id),
            bob.cancel(turn_id),
            bob.provide_input(turn_id, f"{turn_id}/answer", "yes"),
            bob.fork(turn_id),
            anext(aiter(bob.watch(turn_id))),
            anext(aiter(bob.events(turn_id))),
        ]
        for made in strange:
            with pytest.raises(XenocommError) as caught:
                await made
            assert caught.value.reason == "TURN_NOT_FOUND"
        assert turn_id not in [turn.turn_id async for turn in bob.list()]
        with pytest.raises(XenocommError) as caught:
            await anext(bob.list(session="private"))
        assert caught.value.reason == "SESSION_NOT_FOUND"
        request_id = uuid.uuid4().hex
        assert await create(ann, spec(), request_id) != await create(bob, spec(), request_id)


async def test_no_rpc_shows_one_tenants_memory_to_another(mesh: Mesh) -> None:
    async with mesh.client("owner", "memory") as ann, mesh.client("stranger", "memory") as bob:
        mine, theirs = MemoryServiceStub(ann.channel), MemoryServiceStub(bob.channel)
        where = "knowledge/plans"
        await mine.Write(
            memory.WriteRequest(namespace=where, record=memory.Record(record_id="r", text="The launch is in May."))
        )
        said = Message(role=ROLE_USER, parts=[Part(text=Text(text="The launch is in May."))])
        await mine.AppendMessages(memory.AppendMessagesRequest(session_id="s", messages=[said], request_id="1"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await theirs.Get(memory.GetRequest(namespace=where, record_id="r"))
        assert errors.of(caught.value).name == "RECORD_NOT_FOUND"
        assert not (await theirs.List(memory.ListRequest(namespace=where))).records
        assert not (await theirs.Search(memory.SearchRequest(namespaces=[where], query="launch May"))).hits
        assert not (await theirs.ListMessages(memory.ListMessagesRequest(session_id="s"))).messages
        await theirs.Forget(memory.ForgetRequest(namespace=where, everything=True))
        assert (
            await mine.Get(memory.GetRequest(namespace=where, record_id="r"))
        ).record.text == "The launch is in May."


async def test_a_record_that_cannot_be_decoded_is_buried_and_blocks_nobody(mesh: Mesh, client: Client) -> None:
    session, record_id = f"s-{uuid.uuid4().hex}", ids.record_id(uuid.uuid4().hex)
    turn_id = await create(client, spec(session_id=session))
    [first] = [event async for event in client.events(turn_id)][:1]
    key = envelope.session_key(first.event.header.tenant_id, session)
    database = await Database.open(mesh.database_url, 2)
    log = await PostgresLog.open(database)
    try:
        await log.append(envelope.TURNS, [Record(key, record_id, b"\xff no event")])
        answer = await client.ask("What is a step?", session=session)
        assert answer.text
        dead = await _read_until(log, key, record_id)
        assert dead.payload == b"\xff no event"
        assert dead.headers["dlq-topic"] == envelope.TURNS
        assert dead.headers["dlq-reason"].startswith("undecodable")
    finally:
        await log.close()
        await database.close()


async def _read_until(log: PostgresLog, key: str, record_id: bytes) -> Record:
    topic, offset = envelope.TURNS + SUFFIX, 0
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            for stored in await log.read(topic, partition_of(key, 8), offset, 100, 1.0):
                offset = stored.offset + 1
                if stored.record.record_id == record_id:
                    return stored.record


async def test_every_service_is_healthy_and_says_so_to_whoever_watches(mesh: Mesh) -> None:
    for package, service in PACKAGES.items():
        async with grpc.aio.insecure_channel(mesh.address_of(service)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=f"kfm.{package}.v1.{package.capitalize()}Service")
            assert (await stub.Check(request, timeout=WAIT_SECONDS)).status == health_pb2.HealthCheckResponse.SERVING
            watch = stub.Watch(request, timeout=WAIT_SECONDS)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()


async def test_an_explorer_lists_and_calls_without_the_protos_as_the_readme_shows(mesh: Mesh) -> None:
    [console] = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shown = re.findall(r"^\$ ((?:.*\\\n)*.*)$", console, re.MULTILINE)
    elsewhere = () if mesh.address_of("memory") == mesh.endpoints.address else ("kfm.memory",)
    left_out = ("KEY=", "grpcurl ", *elsewhere)
    commands = [command for command in shown if not any(words in command for words in left_out)]
    script = "\n".join(commands).replace("127.0.0.1:7700", mesh.endpoints.address)
    out = await _bash(script, KEY=mesh.key("explorer"))
    answers = ["kfm.turn.v1.TurnService/RunTurn", "grpc.reflection.v1.ServerReflection/", '"turnCompleted"', '"hits"']
    assert [answer for answer in answers if answer not in out] == (['"hits"'] if elsewhere else [])


async def test_the_http_port_tells_machines_how_the_process_is(mesh: Mesh, client: Client) -> None:
    await client.ask("What is a turn?")

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://{mesh.endpoints.http_address}{path}", timeout=WAIT_SECONDS) as response:
            return response.read().decode()

    assert await asyncio.to_thread(get, "/health/live") == "live\n"
    assert await asyncio.to_thread(get, "/health/ready") == "ready\n"
    metrics = await asyncio.to_thread(get, "/metrics")
    assert 'agentshell_rpc_seconds_count{code="OK",method="/kfm.turn.v1.TurnService/RunTurn"}' in metrics


async def test_a_callers_trace_goes_through_every_event(client: Client) -> None:
    trace_id = uuid.uuid4().hex
    stub = TurnServiceStub(client.channel)
    metadata = (("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"),)
    request = turns.RunTurnRequest(turn=spec())
    told = stub.RunTurn(request, metadata=metadata, timeout=WAIT_SECONDS)
    headers = [u.event.header or u.delta.header async for response in told for u in response.updates]
    assert headers
    assert {header.traceparent.split("-")[1] for header in headers if header.traceparent} == {trace_id}


async def _bash(script: str, **variables: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | variables
    process = await asyncio.create_subprocess_exec("bash", "-euc", script, stdout=PIPE, stderr=PIPE, env=environment)
    async with asyncio.timeout(WAIT_SECONDS):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
