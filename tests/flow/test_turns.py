"""What a turn does, through the client, over one process and over many."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.flow.mesh import Mesh
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Fault, Reply

from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.error.v1.error_pb2 import ERROR_REASON_STEP_TIMEOUT, ERROR_REASON_TURN_TIMEOUT
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import TurnUpdate
from kfm.turn.v1.turn_pb2 import (
    TURN_STATE_CANCELLED,
    TURN_STATE_COMPLETED,
    TURN_STATE_RUNNING,
    ModelChoice,
    ModelStep,
    NoopStep,
    Plan,
    RetryPolicy,
    Step,
    TurnLimits,
)
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client, Transcript, XenocommError

WAIT_SECONDS = 60.0


def spec(text: str = "What is a turn?", **changes: Any) -> pb.TurnSpec:
    return pb.TurnSpec(input=Message(role=ROLE_USER, parts=[Part(text=Text(text=text))]), **changes)


def asking_vendor(**changes: Any) -> pb.TurnSpec:
    return spec(model=ModelChoice(provider="openai"), **changes)


def passes(*edges: tuple[str, ...]) -> Plan:
    return Plan(steps=[Step(step_id=name, depends_on=needs, noop=NoopStep()) for name, *needs in edges])


def chain(length: int) -> Plan:
    names = [f"s{at:02}" for at in range(length)]
    return passes((names[0],), *zip(names[1:], names, strict=False))


def kinds(updates: list[TurnUpdate]) -> list[str]:
    """Returns the kinds of the updates, with each run of text as one."""
    told: list[str] = []
    for update in updates:
        kind = update.event.WhichOneof("event") or "text"
        if kind != "text" or told[-1] != "text":
            told.append(kind)
    return told


async def run(client: Client, turn: pb.TurnSpec, request_id: str = "") -> list[TurnUpdate]:
    stub = TurnServiceStub(client.channel)
    request = pb.RunTurnRequest(request_id=request_id, turn=turn)
    return [update async for response in stub.RunTurn(request, timeout=WAIT_SECONDS) for update in response.updates]


async def create(client: Client, turn: pb.TurnSpec, request_id: str = "") -> str:
    stub = TurnServiceStub(client.channel)
    return (
        await stub.CreateTurn(pb.CreateTurnRequest(request_id=request_id, turn=turn), timeout=WAIT_SECONDS)
    ).turn.turn_id


async def acknowledged(call: grpc.aio.UnaryStreamCall[pb.RunTurnRequest, pb.RunTurnResponse]) -> str:
    response = await anext(aiter(call))
    assert isinstance(response, pb.RunTurnResponse)
    return response.turn_id


async def wait_for_text(client: Client, turn_id: str) -> None:
    async for update in client.watch(turn_id):
        if update.HasField("delta"):
            return


async def fail_once(client: Client, vendor: OpenAIChatServer, fault: Fault) -> str:
    """Starts a turn whose first attempt meets the fault, and heals the vendor once that attempt has failed."""
    vendor.fault = fault
    retry = RetryPolicy(first_delay=Duration(seconds=2))
    turn_id = await create(
        client, asking_vendor(plan=Plan(steps=[Step(step_id="answer", model=ModelStep(), retry=retry)]))
    )
    async for update in client.watch(turn_id):
        if update.event.HasField("step_failed"):
            vendor.fault = Fault()
            break
    return turn_id


async def test_a_turn_retrieves_answers_and_says_so_in_order(client: Client) -> None:
    updates = await run(client, spec("What happens if the process is killed during a turn?"))
    assert kinds(updates) == [
        "turn_requested",
        "plan_created",
        "step_scheduled",
        "step_succeeded",
        "step_scheduled",
        "text",
        "step_succeeded",
        "turn_completed",
    ]
    transcript = Transcript()
    for update in updates[:-2]:
        transcript.add(update)
    completed = updates[-1].event.turn_completed
    assert transcript.text == completed.output.parts[0].text.text
    assert completed.usage.cost.currency_code == "USD"
    assert completed.output.parts[0].text.citations
    turn = await client.get(updates[-1].event.turn_id)
    assert (turn.state, turn.output, turn.usage) == (TURN_STATE_COMPLETED, completed.output, completed.usage)


async def test_a_session_remembers_what_was_said(client: Client, vendor: OpenAIChatServer) -> None:
    session = f"s-{uuid.uuid4().hex}"
    await client.ask("My name is Ada.", session=session, provider="openai")
    vendor.reply = Reply(texts=("Ada.",))
    answer = await client.ask("What is my name?", session=session, provider="openai")
    assert answer.text == "Ada."
    said = [message for message in vendor.requests[-1].body["messages"] if message["role"] != "system"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    assert "My name is Ada." in str(said[0]["content"])
    assert "Ready to serve." in str(said[1]["content"])


async def test_a_repeated_request_id_gives_the_first_turn_and_another_body_is_refused(client: Client) -> None:
    request_id = uuid.uuid4().hex
    first = await run(client, spec(), request_id)
    again = await run(client, spec(), request_id)
    assert again == first
    assert await create(client, spec(), request_id) == first[0].event.turn_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run(client, spec("Something else"), request_id)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_concurrent_repeats_of_a_request_make_one_turn(client: Client) -> None:
    request_id = uuid.uuid4().hex
    made = await asyncio.gather(*(create(client, spec(), request_id) for _ in range(8)))
    assert len(set(made)) == 1
    assert len([turn async for turn in client.list()]) == 1


async def test_a_stream_resumes_from_every_cursor_with_nothing_missed_and_nothing_repeated(client: Client) -> None:
    stub = TurnServiceStub(client.channel)
    request = pb.RunTurnRequest(turn=spec("How do I add a personality?"))
    responses = [response async for response in stub.RunTurn(request, timeout=WAIT_SECONDS)]
    turn_id = responses[0].turn_id
    whole = [update for response in responses for update in response.updates]
    watched = [r async for r in stub.WatchTurn(pb.WatchTurnRequest(turn_id=turn_id), timeout=WAIT_SECONDS)]
    assert [update for response in watched for update in response.updates] == whole
    seen = 0
    for response in responses:
        seen += len(response.updates)
        rest = stub.WatchTurn(pb.WatchTurnRequest(turn_id=turn_id, cursor=response.cursor), timeout=WAIT_SECONDS)
        assert [update async for batch in rest for update in batch.updates] == whole[seen:]


async def test_a_cancelled_turn_ends_the_call_to_the_vendor(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(stall_after=3)
    turn_id = await create(client, asking_vendor())
    await wait_for_text(client, turn_id)
    await client.cancel(turn_id, "enough")
    await vendor.wait_hung_up()
    updates = [update async for update in client.watch(turn_id)]
    # The vendor's last text may come in between.
    assert [kind for kind in kinds(updates) if kind != "text"][-2:] == ["turn_cancel_requested", "turn_cancelled"]
    assert (await client.get(turn_id)).state == TURN_STATE_CANCELLED
    with pytest.raises(XenocommError) as caught:
        await client.cancel(turn_id)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TURN_STATE")


async def test_a_caller_that_goes_away_does_not_end_its_turn(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(stall_after=3)
    stub = TurnServiceStub(client.channel)
    call = stub.RunTurn(pb.RunTurnRequest(turn=asking_vendor()), timeout=WAIT_SECONDS)
    turn_id = await acknowledged(call)
    await wait_for_text(client, turn_id)
    call.cancel()
    assert (await client.get(turn_id)).state == TURN_STATE_RUNNING
    await client.cancel(turn_id)
    await vendor.wait_hung_up()


async def test_a_turn_that_takes_too_long_fails_by_name(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(stall_after=3)
    limits = TurnLimits()
    limits.max_duration.FromSeconds(2)
    updates = await run(client, asking_vendor(limits=limits))
    failure = updates[-1].event.turn_failed.failure
    assert failure.message
    assert failure.reason in (ERROR_REASON_TURN_TIMEOUT, ERROR_REASON_STEP_TIMEOUT), "whoever saw it first"
    if vendor.requests:  # On a loaded machine time may run out before the vendor is called.
        await vendor.wait_hung_up()


async def test_a_step_that_fails_for_a_while_is_tried_again(client: Client, vendor: OpenAIChatServer) -> None:
    turn_id = await fail_once(client, vendor, Fault(status=503))
    updates = [update async for update in client.watch(turn_id)]
    assert kinds(updates)[-5:] == ["step_failed", "step_scheduled", "text", "step_succeeded", "turn_completed"]
    assert updates[-2].event.step_succeeded.attempt == 1 + kinds(updates).count("step_failed")


async def test_a_failure_says_what_failed_and_why(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(status=401, message="no such key")
    with pytest.raises(XenocommError) as caught:
        await client.ask("Hello?", provider="openai")
    assert caught.value.reason == "PROVIDER_KEY_INVALID"
    assert "refused the key" in caught.value.message
    assert len(vendor.requests) == 1, "what does not pass by itself is not tried again"


async def test_text_of_a_run_that_broke_off_is_void(client: Client, vendor: OpenAIChatServer) -> None:
    turn_id = await fail_once(client, vendor, Fault(cut_after=3))
    transcript = Transcript()
    said = defaultdict[int, str](str)
    async for update in client.watch(turn_id):
        transcript.add(update)
        said[update.delta.attempt] += "".join(update.delta.texts)
    assert transcript.text == "Ready to serve." == said[max(said)]


async def test_turns_of_one_session_run_one_after_another(client: Client, vendor: OpenAIChatServer) -> None:
    session = f"s-{uuid.uuid4().hex}"
    vendor.fault = Fault(stall_after=3)
    first = await create(client, asking_vendor(session_id=session))
    await wait_for_text(client, first)
    second = await create(client, spec(session_id=session))
    third = await create(client, spec(session_id=f"s-{uuid.uuid4().hex}"))
    assert kinds([update async for update in client.watch(third)])[-1] == "turn_completed"
    assert [e.event.WhichOneof("event") async for e in client.events(second)] == ["turn_requested"]
    await client.cancel(first)
    assert kinds([update async for update in client.watch(second)])[-1] == "turn_completed"


async def test_a_given_plan_runs_in_the_order_of_its_edges(client: Client) -> None:
    updates = await run(client, spec(plan=passes(("a",), ("b",), ("c", "a", "b"), ("d", "c"))))
    names = [
        (update.event.WhichOneof("event"), update.event.step_scheduled.step_id.rpartition("/")[2])
        for update in updates
        if update.event.HasField("step_scheduled")
    ]
    assert [name for _, name in names][:2] == ["a", "b"]
    assert [name for _, name in names][2:] == ["c", "d"]
    assert updates[-1].event.turn_completed.output == updates[0].event.turn_requested.input


async def test_lists_page_through_turns_and_events(client: Client) -> None:
    made = [await create(client, spec(plan=passes(("a",)))) for _ in range(5)]
    for turn_id in made:
        assert kinds([update async for update in client.watch(turn_id)])[-1] == "turn_completed"
    assert [turn.turn_id async for turn in client.list(page_size=2)] == made[::-1]
    stub = TurnServiceStub(client.channel)
    events: list[str] = []
    request = pb.ListTurnEventsRequest(turn_id=made[0], page_size=2)
    while True:
        page = await stub.ListTurnEvents(request, timeout=WAIT_SECONDS)
        assert len(page.events) <= 2
        events += [recorded.event.WhichOneof("event") or "" for recorded in page.events]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert events == ["turn_requested", "plan_created", "step_scheduled", "step_succeeded", "turn_completed"]


async def test_a_turn_larger_than_a_message_is_read_in_pieces(client: Client) -> None:
    large = spec("x" * 250_000, plan=chain(20))
    responses = [r async for r in TurnServiceStub(client.channel).RunTurn(pb.RunTurnRequest(turn=large), timeout=60)]
    updates = [update for response in responses for update in response.updates]
    assert sum(update.ByteSize() for update in updates) > 5_000_000
    assert kinds(updates)[-1] == "turn_completed"
    turn_id = responses[0].turn_id
    assert [recorded.event async for recorded in client.events(turn_id)] == [update.event for update in updates]
    turn = await client.get(turn_id)
    assert turn.output == turn.input
    assert not any(step.result.HasField("output") for step in turn.plan.steps)
    for _ in range(5):
        await create(client, spec("y" * 250_000))
    assert len([turn async for turn in client.list()]) == 6


async def test_a_client_that_does_not_read_slows_nobody_and_misses_nothing(client: Client) -> None:
    stub = TurnServiceStub(client.channel)
    large = spec("x" * 250_000, plan=chain(20))  # More than the network buffers between server and client.
    idle = stub.RunTurn(pb.RunTurnRequest(turn=large), timeout=60)
    first = await anext(aiter(idle))
    assert isinstance(first, pb.RunTurnResponse)
    whole = [update async for update in client.watch(first.turn_id)]
    assert kinds(whole)[-1] == "turn_completed"
    late = [update async for response in idle for update in response.updates]
    assert [*first.updates, *late] == whole


async def test_a_deadline_ends_the_call_and_not_the_turn(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(stall_after=3)
    turn, request_id = asking_vendor(), uuid.uuid4().hex
    request = pb.RunTurnRequest(request_id=request_id, turn=turn)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in TurnServiceStub(client.channel).RunTurn(request, timeout=2.0):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    turn_id = await create(client, turn, request_id)  # A caller that lost its turn finds it this way.
    await wait_for_text(client, turn_id)
    assert (await client.get(turn_id)).state == TURN_STATE_RUNNING
    await client.cancel(turn_id)
    await vendor.wait_hung_up()


async def test_two_tenants_sessions_of_one_name_are_two(mesh: Mesh, vendor: OpenAIChatServer) -> None:
    async with mesh.client("tenant-a") as ann, mesh.client("tenant-b") as bob:
        await ann.ask("My secret is 42.", session="shared-name", provider="openai")
        await bob.ask("What is the secret?", session="shared-name", provider="openai")
    assert "My secret" not in str(vendor.requests[-1].body)
