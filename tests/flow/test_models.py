"""Turns with models: OpenAI's Responses (the API that `openai` uses), aliases with fallbacks, and costs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.conftest import create_database
from tests.flow.conftest import environment_for
from tests.flow.mesh import Mesh
from tests.flow.test_engine import HANDY, asks_for, calculation, over
from tests.flow.test_turns import WAIT_SECONDS, run, spec
from tests.vendors.openai_server import OpenAIServer
from tests.vendors.vendor_server import Fault, Reply

from agentshell.content import text_of
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb
from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceStub
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, TURN_STATE_FAILED, ModelChoice, TurnLimits
from xenocomm import Client


@pytest.fixture
async def vendor() -> AsyncGenerator[OpenAIServer]:
    """Plays OpenAI, and speaks Responses."""
    async with OpenAIServer() as server:
        yield server


@pytest.fixture
async def client(vendor: OpenAIServer, tmp_path: Path, postgres_url: str) -> AsyncGenerator[Client]:
    """A client of a mesh whose `openai` is the vendor, and comes first in the alias `smart`."""
    environment = {
        **environment_for(vendor),
        "AGENTSHELL_PROVIDER__VENDORS__OPENAI__ADAPTER": "openai",
        "AGENTSHELL_PROVIDER__ALIASES": "{smart = ['openai/gpt-6.1-sol', 'local/extract']}",
        "AGENTSHELL_PROVIDER__MAX_ATTEMPTS": "1",
    }
    mesh = Mesh(tmp_path, await create_database(postgres_url), environment, separate=False)
    await mesh.start()
    try:
        async with mesh.client("thrifty") as made:
            yield made
    finally:
        await mesh.stop()


async def test_a_turn_over_responses_has_its_tools_its_reasoning_back_and_its_cost_in_the_books(
    client: Client, vendor: OpenAIServer
) -> None:
    thinks = Reply(texts=(), reasoning=("Let me see.",), calls=(calculation("c1", "6 * 7"),), finish="tool_calls")
    vendor.script = [thinks, Reply(texts=("It is ", "42."))]
    turn = over(await run(client, spec("What is 6 times 7?", session_id="sums", **HANDY)))
    assert (turn.state, text_of(turn.output)) == (TURN_STATE_COMPLETED, "It is 42.")
    kinds = [item.get("type", "message") for item in vendor.requests[-1].body["input"]]
    assert kinds[-3:] == ["reasoning", "function_call", "function_call_output"]
    assert "42" in vendor.requests[-1].body["input"][-1]["output"]

    stub = ProviderServiceStub(client.channel)
    usage = await stub.GetUsage(pb.GetUsageRequest(session_id="sums", personality_id="handy"), timeout=WAIT_SECONDS)
    # The ledger may lag a second behind the turn's end.
    while sum(row.call_count for row in usage.rows) < 2:
        usage = await stub.GetUsage(pb.GetUsageRequest(session_id="sums", personality_id="handy"), timeout=WAIT_SECONDS)
    [row] = usage.rows
    assert row.usage.cost == turn.usage.cost
    assert row.usage.input_tokens == turn.usage.input_tokens == 2400


async def test_an_alias_answers_by_its_next_model_where_the_first_is_down(client: Client, vendor: OpenAIServer) -> None:
    vendor.fault = Fault(status=503)
    turn = over(await run(client, spec(model=ModelChoice(model="smart"))))
    assert turn.state == TURN_STATE_COMPLETED
    assert {step.result.provider for step in turn.plan.steps if step.HasField("model")} == {"local"}


async def test_a_turns_limit_of_tokens_holds_before_a_model_is_asked(client: Client, vendor: OpenAIServer) -> None:
    vendor.script = [asks_for(calculation("c1", "6 * 7"))]
    turn = over(await run(client, spec("What is 6 times 7?", limits=TurnLimits(max_tokens=1550), **HANDY)))
    assert turn.state == TURN_STATE_FAILED
    assert turn.failure.reason == error_pb2.ERROR_REASON_TOKEN_LIMIT
    assert len(vendor.requests) == 1
    assert vendor.requests[0].body["max_output_tokens"] < 1550
