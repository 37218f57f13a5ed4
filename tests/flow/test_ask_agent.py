"""A model that asks other personalities through a tool, in sub-turns."""

from __future__ import annotations

from typing import Any

from tests.flow.test_engine import asks_for, over
from tests.flow.test_turns import WAIT_SECONDS, create, run, spec
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Call, Fault, Reply

from agentshell.content import text_of
from agentshell.runtime.request import ASK_AGENT
from agentshell.tool.builtin import ask_agent
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_pb2 import TURN_STATE_CANCELLED, TURN_STATE_COMPLETED, Plan, Step, ToolStep, TurnLimits
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client

SOCIAL: dict[str, Any] = {"personality_id": "social"}
ASKS = asks_for(Call("c1", "ask_agent", ('{"personality": "social", ', '"question": "Why?"}')))


def said(vendor: OpenAIChatServer, request: int) -> str:
    """Returns the tool's answer, from the last message of a request."""
    last = vendor.requests[request].body["messages"][-1]
    assert last["role"] == "tool"
    return last["content"]


async def test_another_personality_answers_a_model_and_its_use_counts(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.script = [ASKS, Reply(texts=("Because.",)), Reply(texts=("It says why.",))]

    turn = over(await run(client, spec("Ask why.", **SOCIAL)))

    assert (turn.state, text_of(turn.output)) == (TURN_STATE_COMPLETED, "It says why."), turn.failure
    assert [request.body["messages"][-1]["content"] for request in vendor.requests[:2]] == ["Ask why.", "Why?"]
    assert '"answer": "Because."' in said(vendor, 2)
    assert turn.usage.output_tokens == 3 * vendor.reply.output_tokens
    assert ask_agent.NAME == ASK_AGENT, "the tool and the runtime mean the same"


async def test_a_turn_below_may_use_as_many_tokens_as_are_left(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.script = [ASKS, Reply(texts=("Because.",)), Reply(texts=("It says why.",))]

    turn = over(await run(client, spec("Ask why.", limits=TurnLimits(max_tokens=100_000), **SOCIAL)))

    assert turn.state == TURN_STATE_COMPLETED, turn.failure
    [below] = [listed async for listed in client.list() if listed.HasField("parent")]
    used = vendor.reply.input_tokens + vendor.reply.output_tokens
    assert below.limits.max_tokens == 100_000 - used


async def test_personalities_that_ask_one_another_come_to_an_end(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.script = [ASKS] * 5 + [Reply(texts=("Enough.",))]

    turn = over(await run(client, spec("Ask why.", **SOCIAL)))

    assert (turn.state, text_of(turn.output)) == (TURN_STATE_COMPLETED, "Enough."), turn.failure
    assert "DEPTH_LIMIT" in said(vendor, 5)
    assert len(vendor.requests) == 10


async def test_a_cancelled_turn_cancels_what_it_had_others_answer(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(stall_after=2)
    ask = Step(step_id="ask", tool=ToolStep(name="ask_agent"), input="{'personality': 'social', 'question': 'Why?'}")
    turn_id = await create(client, spec(plan=Plan(steps=[ask]), **SOCIAL))
    await vendor.wait_asked()

    await TurnServiceStub(client.channel).CancelTurn(pb.CancelTurnRequest(turn_id=turn_id), timeout=WAIT_SECONDS)

    await vendor.wait_hung_up()
    below = [turn async for turn in client.list() if (await client.get(turn.turn_id)).parent.turn_id == turn_id]
    async for _ in client.watch(below[0].turn_id):
        pass
    assert [(await client.get(turn.turn_id)).state for turn in below] == [TURN_STATE_CANCELLED]
