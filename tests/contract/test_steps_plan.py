"""Steps in which a model writes a plan, over the real services and a model vendor's HTTP server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.steps import Services, request_of, run, serve
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Reply, Request

from agentshell.content import text_of
from agentshell.db.database import Database
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.steps.plan import PlanRunner
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import PlanStep, Step, StepResult

CALL = {"id": "sum", "kind": "tool", "tool": "calculator", "arguments": {"expression": "2 + 2"}}
SUM_UP = {"id": "say", "kind": "model", "needs": ["sum"], "instructions": "Say it.", "input": "outputs['sum'].text"}
GOOD = json.dumps({"steps": [CALL, SUM_UP]})
BAD = json.dumps({"steps": [{**CALL, "tool": "abacus"}]})


@pytest.fixture
async def services(database: Database, tmp_path: Path) -> AsyncIterator[Services]:
    async with serve(database, tmp_path) as made:
        yield made


def answer(services: Services, monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Makes the vendor's model answer with the texts, one for each request."""
    waiting = list(texts)
    events = OpenAIChatServer.events

    def next_events(server: OpenAIChatServer, request: Request) -> Any:
        server.reply = Reply(texts=(waiting.pop(0),), input_tokens=100, output_tokens=10, cached_tokens=0)
        return events(server, request)

    monkeypatch.setattr(OpenAIChatServer, "events", next_events)


def planning(remaining_step_count: int = 10) -> StepRequest:
    request = request_of(Step(step_id="T/plan", plan=PlanStep()), "tooled")
    request.remaining_step_count = remaining_step_count
    return request


async def write(services: Services, request: StepRequest, said: list[str] | None = None) -> StepResult:
    return await run(PlanRunner(services.inside, services.sources, 100_000), request, said)


def asked(services: Services) -> list[list[str]]:
    """Returns the messages of each request to the vendor, without the first two (the system's and the user's)."""
    return [[message["content"] for message in request.body["messages"][2:]] for request in services.vendor.requests]


async def test_a_models_plan_is_the_result_and_is_published_to_nobody(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(services, monkeypatch, f"Here it is:\n```json\n{GOOD}\n```")
    said: list[str] = []
    result = await write(services, planning(), said)

    assert [(step.step_id, list(step.depends_on), step.input) for step in result.plan.steps] == [
        ("sum", [], ""),
        ("say", ["sum"], "outputs['plan#sum'].text"),
    ]
    assert (json.loads(text_of(result.output)[len("Here it is:\n```json\n") : -4]), said) == (json.loads(GOOD), [])
    assert (result.provider, result.usage.input_tokens, result.usage.output_tokens) == ("openai", 100, 10)
    system = services.vendor.requests[0].body["messages"][0]["content"]
    assert system.startswith("Help.\n\nDo not answer the user yet")
    assert "- calculator: " in system
    assert "tools" not in services.vendor.requests[0].body


async def test_a_plan_that_cannot_be_run_is_mended_by_the_model(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(services, monkeypatch, "I cannot.", BAD, GOOD)
    result = await write(services, planning())

    names = "ask_agent, calculator, clock, http_get, memory_search, memory_write"
    mends = [
        f"That plan cannot be run:\n- {problem}\nSay the whole plan again, mended: one JSON object and nothing else."
        for problem in (
            "there is no JSON object in the answer",
            f"steps[0].tool: there is no tool 'abacus'; the tools are: {names}",
        )
    ]
    assert asked(services) == [[], ["I cannot.", mends[0]], ["I cannot.", mends[0], BAD, mends[1]]]
    assert (len(result.plan.steps), result.usage.input_tokens, result.usage.output_tokens) == (2, 300, 30)


async def test_a_plan_is_mended_twice_and_then_fails(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(services, monkeypatch, BAD, BAD, BAD)
    with pytest.raises(AgentShellError) as caught:
        await write(services, planning())
    assert caught.value.reason == error_pb2.ERROR_REASON_PLAN_INVALID
    assert "no tool 'abacus'" in caught.value.message
    assert len(services.vendor.requests) == 3


async def test_another_attempt_asks_for_nothing_that_was_answered(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(services, monkeypatch, BAD, GOOD)
    first = await write(services, planning())
    again = await write(services, planning())
    assert (again, len(services.vendor.requests)) == (first, 2)


async def test_a_plan_has_no_more_steps_than_the_turn_may_have(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(services, monkeypatch, GOOD, '{"steps": []}')
    result = await write(services, planning(remaining_step_count=2))
    assert "steps: there are 2, the limit is 1" in asked(services)[1][1]
    assert list(result.plan.steps) == []
