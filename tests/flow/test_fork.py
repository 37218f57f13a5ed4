"""Turns that share another turn's past, through the client."""

from __future__ import annotations

import uuid

import grpc
import grpc.aio
import pytest
from tests.flow.test_engine import HANDY, asks_for, calculation, over
from tests.flow.test_inputs import end_of
from tests.flow.test_turns import create, passes, run, spec
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Reply

from agentshell.content import text_of
from agentshell.mesh import errors
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, ForkPoint, Turn, TurnLimits
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client, XenocommError


def named(turn: Turn) -> dict[str, str]:
    """Returns the outputs of the turn's steps, by step name without the turn id."""
    return {step.step_id.partition("/")[2]: text_of(step.result.output) for step in turn.plan.steps}


async def test_a_fork_goes_on_from_a_step_with_what_that_step_came_to(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.script = [asks_for(calculation("c1", "6 * 7")), Reply(texts=("It is 42.",))]
    source = over(await run(client, spec("What is 6 times 7?", **HANDY)))
    vendor.script = [Reply(texts=("Forty-two, in words.",))]
    vendor.requests.clear()
    forked = await client.fork(source.turn_id, f"{source.turn_id}/answer#1.0", text="And in words?")
    turn = await end_of(client, forked.turn_id)
    assert (turn.state, text_of(turn.output)) == (TURN_STATE_COMPLETED, "Forty-two, in words.")
    assert turn.fork == ForkPoint(turn_id=source.turn_id, step_id=f"{source.turn_id}/answer#1.0")
    assert turn.session_id not in ("", source.session_id)
    assert turn.personality_digest == source.personality_digest
    assert named(turn).keys() == named(source).keys()
    [asked] = [request.body["messages"] for request in vendor.requests]
    assert [message["content"] for message in asked if message["role"] == "user"][-1].endswith("And in words?")
    assert "42" in next(message["content"] for message in asked if message["role"] == "tool")


async def test_a_fork_from_no_step_runs_the_whole_turn_again(client: Client, vendor: OpenAIChatServer) -> None:
    source = over(await run(client, spec(plan=passes(("a",), ("b", "a")))))
    turn = await end_of(client, (await client.fork(source.turn_id, text="Something else")).turn_id)
    assert named(turn) == {"a": "Something else", "b": "Something else"}
    vendor.reply = Reply(texts=("Otherwise.",))
    asked = over(await run(client, spec("Hello?")))
    turn = await end_of(client, (await client.fork(asked.turn_id, provider="openai")).turn_id)
    assert text_of(turn.output) == "Otherwise."
    assert turn.input == asked.input


async def test_a_repeated_fork_is_the_first_one(client: Client) -> None:
    source = over(await run(client, spec(plan=passes(("a",), ("b", "a")))))
    request_id = uuid.uuid4().hex
    first = await client.fork(source.turn_id, f"{source.turn_id}/a", request_id=request_id)
    again = await client.fork(source.turn_id, f"{source.turn_id}/a", request_id=request_id)
    assert again.turn_id == first.turn_id
    with pytest.raises(XenocommError) as caught:
        await client.fork(source.turn_id, f"{source.turn_id}/b", request_id=request_id)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    await end_of(client, first.turn_id)
    grandchild = await client.fork(first.turn_id, f"{first.turn_id}/b", text="Too late")
    assert named(await end_of(client, grandchild.turn_id)) == named(source)


async def test_a_fork_that_cannot_be_is_refused_by_name(client: Client) -> None:
    source = over(await run(client, spec(plan=passes(("a",), ("b", "a")))))
    at_a = f"{source.turn_id}/a"
    fork_of_a = await client.fork(source.turn_id, at_a)
    wide = over(await run(client, spec("x" * 80_000, plan=passes(*((f"s{at}",) for at in range(10))))))
    refused: list[tuple[pb.ForkTurnRequest, str]] = [
        (pb.ForkTurnRequest(turn_id="nothing"), "TURN_NOT_FOUND"),
        (pb.ForkTurnRequest(turn_id=source.turn_id, step_id="nothing"), "TURN_STATE"),
        (pb.ForkTurnRequest(turn_id=fork_of_a.turn_id), "INVALID_REQUEST step_id"),
        (
            pb.ForkTurnRequest(turn_id=source.turn_id, step_id=at_a, changes=spec(plan=passes(("c",)))),
            "INVALID_REQUEST changes.plan",
        ),
        (
            pb.ForkTurnRequest(turn_id=source.turn_id, changes=spec(" ")),
            "INVALID_REQUEST changes.input.parts",
        ),
        (
            pb.ForkTurnRequest(turn_id=source.turn_id, changes=pb.TurnSpec(session_id="no spaces")),
            "INVALID_REQUEST changes.session_id",
        ),
        (
            pb.ForkTurnRequest(turn_id=source.turn_id, changes=pb.TurnSpec(limits=TurnLimits(max_steps=-1))),
            "INVALID_REQUEST changes.limits.max_steps",
        ),
        (pb.ForkTurnRequest(turn_id=wide.turn_id, step_id=f"{wide.turn_id}/s9"), "TOO_LARGE"),
    ]
    for request, reason in refused:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await TurnServiceStub(client.channel).ForkTurn(request, timeout=20)
        error = errors.of(caught.value)
        assert " ".join((error.name, *dict(error.violations))) == reason, request
    turn = await end_of(client, await create(client, spec(plan=passes(("a",)))))
    assert turn.state == TURN_STATE_COMPLETED
