"""What plans can express, through the client, over one process and over many."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.flow.ledger import Ledger
from tests.flow.test_turns import WAIT_SECONDS, create, run, spec
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Call, Fault, Reply

from agentshell.content import text_of
from agentshell.turn.state import apply
from kfm.error.v1 import error_pb2
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import TurnUpdate
from kfm.turn.v1.turn_pb2 import (
    ON_FAILURE_COMPENSATE,
    PLAN_STRATEGY_PLANNED,
    TURN_STATE_CANCELLED,
    TURN_STATE_COMPLETED,
    TURN_STATE_FAILED,
    AgentStep,
    HttpStep,
    Join,
    JoinAny,
    JoinQuorum,
    ModelChoice,
    NoopStep,
    Plan,
    Step,
    StepState,
    ToolStep,
    Turn,
    TurnLimits,
)
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client

HANDY: dict[str, Any] = {"personality_id": "handy", "model": ModelChoice(provider="openai")}


def calculation(call_id: str, expression: str) -> Call:
    return Call(call_id, "calculator", (f'{{"expression": "{expression}"}}',))


def asks_for(*calls: Call) -> Reply:
    return Reply(texts=(), calls=calls, finish="tool_calls")


def calculate(name: str, *needs: str, **changes: Any) -> Step:
    return Step(step_id=name, depends_on=needs, tool=ToolStep(name="calculator"), **changes)


def post(name: str, ledger: Ledger, path: str, *needs: str, **changes: Any) -> Step:
    http = HttpStep(method="POST", uri=f"http://{ledger.host}/{path}")
    return Step(step_id=name, depends_on=needs, http=http, **changes)


def over(updates: list[TurnUpdate]) -> Turn:
    """Folds the events of a turn that is over."""
    turn = Turn()
    for update in updates:
        if update.HasField("event"):
            assert apply(turn, update.event)
    return turn


def states(turn: Turn) -> dict[str, str]:
    return {s.step_id.partition("/")[2]: StepState.Name(s.state).removeprefix("STEP_STATE_") for s in turn.plan.steps}


async def test_a_model_gets_the_tools_that_it_asks_for_and_then_answers(
    client: Client, vendor: OpenAIChatServer
) -> None:
    vendor.script = [
        asks_for(calculation("c1", "6 * 7"), calculation("c2", "1 / 0")),
        asks_for(calculation("c3", "42 + 1")),
        Reply(texts=("It is 43.",)),
    ]
    turn = over(await run(client, spec("What is 6 times 7, plus 1?", **HANDY)))
    assert turn.state == TURN_STATE_COMPLETED
    assert text_of(turn.output) == "It is 43."
    assert states(turn) == {
        "answer": "SUCCEEDED",
        "answer#1.0": "SUCCEEDED",
        "answer#1.1": "FAILED",
        "answer#2": "SUCCEEDED",
        "answer#2.0": "SUCCEEDED",
        "answer#3": "SUCCEEDED",
    }
    last = [request.body["messages"] for request in vendor.requests][-1]
    results = {message["tool_call_id"]: message["content"] for message in last if message["role"] == "tool"}
    assert results.keys() == {"c1", "c2", "c3"}
    assert "42" in results["c1"]
    assert "division" in results["c2"].lower(), "the model is told how a tool failed"
    assert "43" in results["c3"]
    assert [tool["function"]["name"] for tool in vendor.requests[0].body["tools"]] == ["calculator", "clock"]


async def test_a_model_that_never_stops_asking_ends_the_turn_at_its_limit(
    client: Client, vendor: OpenAIChatServer
) -> None:
    vendor.reply = asks_for(calculation("c", "1 + 1"))
    turn = over(await run(client, spec(limits=TurnLimits(max_steps=6), **HANDY)))
    assert turn.state == TURN_STATE_FAILED
    assert turn.failure.reason == error_pb2.ERROR_REASON_STEP_LIMIT
    turn = over(await run(client, spec(limits=TurnLimits(max_tokens=2000), **HANDY)))
    assert turn.failure.reason == error_pb2.ERROR_REASON_TOKEN_LIMIT


async def test_a_model_writes_the_plan_that_is_then_run(client: Client, vendor: OpenAIChatServer) -> None:
    plan = '{"steps": [{"id": "sum", "kind": "tool", "tool": "calculator", "arguments": {"expression": "2 + 3"}}]}'
    vendor.script = [Reply(texts=("no plan",)), Reply(texts=(plan,)), Reply(texts=("Five.",))]
    turn = over(await run(client, spec("2 + 3?", strategy=PLAN_STRATEGY_PLANNED, **HANDY)))
    assert turn.state == TURN_STATE_COMPLETED, turn.failure
    assert text_of(turn.output) == "Five."
    assert states(turn) == {"plan": "SUCCEEDED", "plan#sum": "SUCCEEDED", "answer": "SUCCEEDED"}


async def test_a_plan_fans_out_over_a_list_branches_and_joins(client: Client) -> None:
    plan = Plan(
        steps=[
            calculate("first", input="{'expression': '2 ** 3'}"),
            calculate("each", "first", fan_out="['1 + 1', '2 + 2', '3 + 3']", input="{'expression': item}"),
            Step(step_id="big", depends_on=["first"], condition="int(outputs.first.json.value) > 100", noop=NoopStep()),
            Step(step_id="after_big", depends_on=["big"], noop=NoopStep()),
            Step(
                step_id="small", depends_on=["first"], condition="int(outputs.first.json.value) <= 100", noop=NoopStep()
            ),
            Step(step_id="branched", depends_on=["after_big", "small"], join=Join(any=JoinAny()), noop=NoopStep()),
            Step(step_id="two", depends_on=["each"], join=Join(quorum=JoinQuorum(count=2)), noop=NoopStep()),
            Step(
                step_id="end", depends_on=["branched", "two"], noop=NoopStep(), input="string(outputs.first.json.value)"
            ),
        ]
    )
    turn = over(await run(client, spec(personality_id="handy", plan=plan)))
    assert turn.state == TURN_STATE_COMPLETED, turn.failure
    found = states(turn)
    assert found.pop("each") == "EXPANDED"
    assert Counter(found.pop(f"each#{index}") for index in range(3))["SUCCEEDED"] >= 2
    assert found == {
        "first": "SUCCEEDED",
        "big": "SKIPPED",
        "after_big": "SKIPPED",
        "small": "SUCCEEDED",
        "branched": "SUCCEEDED",
        "two": "SUCCEEDED",
        "end": "SUCCEEDED",
    }
    assert text_of(turn.output) == "8"


async def test_what_succeeded_is_undone_in_reverse_when_a_step_is_lost(client: Client, ledger: Ledger) -> None:
    plan = Plan(
        steps=[
            post("flight", ledger, "book/flight"),
            post("hotel", ledger, "flaky/hotel", "flight"),
            post("car", ledger, "refuse/car", "hotel", on_failure=ON_FAILURE_COMPENSATE),
            post("no_flight", ledger, "cancel/flight", compensates="flight"),
            post("no_hotel", ledger, "cancel/hotel", compensates="hotel"),
            post("no_car", ledger, "cancel/car", compensates="car"),
        ]
    )
    turn = over(await run(client, spec(plan=plan)))
    assert turn.state == TURN_STATE_FAILED
    assert turn.failure.cause.reason == error_pb2.ERROR_REASON_HTTP_REFUSED
    mine = [path for key, path in ledger.effects if key.startswith(turn.turn_id)]
    assert mine == ["/book/flight", "/flaky/hotel", "/cancel/hotel", "/cancel/flight"]
    assert ledger.calls[f"{turn.turn_id}/hotel"] == 2, "a failure that passes is tried again under the same key"


async def test_another_personality_answers_in_a_turn_of_its_own(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.reply = Reply(texts=("Sub ", "answer."))
    ask = Step(step_id="ask", agent=AgentStep(personality_id="handy"))
    plan = Plan(steps=[ask, Step(step_id="end", depends_on=["ask"], noop=NoopStep(), input="outputs.ask.text")])
    turn = over(await run(client, spec(plan=plan, model=ModelChoice(provider="openai"))))
    assert turn.state == TURN_STATE_FAILED, "the personality's provider is the configuration's, and has no tools"
    assert turn.failure.cause.reason == error_pb2.ERROR_REASON_SUB_TURN_FAILED


async def test_cancelling_a_turn_cancels_the_turns_below_it(client: Client, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(stall_after=2)
    child = Step(step_id="ask", agent=AgentStep(personality_id="social"))
    turn_id = await create(client, spec(plan=Plan(steps=[child])))
    await vendor.wait_asked()
    await TurnServiceStub(client.channel).CancelTurn(pb.CancelTurnRequest(turn_id=turn_id), timeout=WAIT_SECONDS)
    await vendor.wait_hung_up()
    below = [turn async for turn in client.list() if (await client.get(turn.turn_id)).parent.turn_id == turn_id]
    async for _ in client.watch(below[0].turn_id):
        pass
    ended = [await client.get(turn.turn_id) for turn in below]
    assert [(turn.state, turn.parent.depth) for turn in ended] == [(TURN_STATE_CANCELLED, 1)]
