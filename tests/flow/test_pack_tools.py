"""Tools from a pack: strangers' code, in a sandbox, as part of a turn."""

from __future__ import annotations

from typing import Any

from tests.flow.test_engine import asks_for, over, states
from tests.flow.test_turns import run, spec
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Call, Reply

from agentshell.content import text_of
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, ModelChoice, NoopStep, Plan, Step, ToolStep
from xenocomm import Client

CRAFTY: dict[str, Any] = {"personality_id": "crafty", "model": ModelChoice(provider="openai")}


async def test_a_model_gets_the_tools_that_a_pack_brings(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.script = [
        asks_for(
            Call("c1", "roman", ('{"number": 1994}',)),
            Call("c2", "roman", ('{"number": 5000}',)),
            Call("c3", "roman", ('{"number": "many"}',)),
            Call("c4", "wreck", ('{"how": "read"}',)),
        ),
        Reply(texts=("It is MCMXCIV.",)),
    ]

    turn = over(await run(client, spec("How do Romans write 1994?", **CRAFTY)))

    assert turn.state == TURN_STATE_COMPLETED, turn.failure
    assert text_of(turn.output) == "It is MCMXCIV."
    assert [state for name, state in states(turn).items() if name.startswith("answer#1.")] == ["SUCCEEDED"] + [
        "FAILED"
    ] * 3
    offered = {tool["function"]["name"]: tool["function"] for tool in vendor.requests[0].body["tools"]}
    assert offered["roman"]["description"] == "Writes a whole number in Roman numerals."
    assert offered["roman"]["parameters"]["properties"] == {
        "number": {"type": "integer", "description": "From 1 to 3999."}
    }
    messages = vendor.requests[-1].body["messages"]
    results = {message["tool_call_id"]: message["content"] for message in messages if message["role"] == "tool"}
    assert "MCMXCIV" in results["c1"]
    assert "tools/numerals.py:11: ValueError: 5000 has no Roman numeral" in results["c2"]
    assert "is not of type" in results["c3"]
    assert "FileNotFoundError" in results["c4"]


async def test_what_a_packs_tool_finds_is_the_answer_of_a_plan(client: Client) -> None:
    steps = [
        Step(step_id="write", tool=ToolStep(name="roman"), input="{'number': 2026}"),
        Step(step_id="end", depends_on=["write"], noop=NoopStep(), input="outputs.write.json"),
    ]

    turn = over(await run(client, spec(personality_id="crafty", plan=Plan(steps=steps))))

    assert (turn.state, text_of(turn.output)) == (TURN_STATE_COMPLETED, "MMXXVI")
