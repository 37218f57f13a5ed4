"""What the service promises with any vendor: once, within budget, at what cost. Over two real HTTP vendors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.contract.provider import KEY, VARIABLE, asked, question, struct, text_of
from tests.contract.serving import Member, member, refusal
from tests.vendors.anthropic_server import AnthropicServer
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Fault, Reply

from agentshell.db.database import Database
from agentshell.mesh import errors
from agentshell.mesh.call import Principal
from agentshell.mesh.config import ProviderConfig
from agentshell.provider.service import ProviderService
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb
from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceStub, add_ProviderServiceServicer_to_server

WAIT_SECONDS = 20.0
MODEL = "gpt-6.1-sol"
# 1,000 fresh input tokens at 2 micro-USD, 200 cached at 0.1, 300 output tokens at 10.
ANSWER_MICROS = 2000 + 20 + 3000
Vendor: TypeAlias = OpenAIChatServer | AnthropicServer
COUNT = struct({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})


@dataclass
class Served:
    """A service whose default vendor is `first`; `second` is the fallback."""

    stub: Any
    member: Member
    first: OpenAIChatServer
    second: AnthropicServer

    async def generate(self, generation: pb.Generation, tenant: str = "acme", **fields: Any) -> pb.GenerateResponse:
        request = pb.GenerateRequest(generation=generation, **fields)
        return await self.stub.Generate(request, metadata=self.member.key(tenant), timeout=WAIT_SECONDS)

    def open(self, generation: pb.Generation, tenant: str = "acme", **fields: Any) -> Any:
        request = pb.StreamGenerateRequest(generation=generation, **fields)
        return self.stub.StreamGenerate(request, metadata=self.member.key(tenant), timeout=WAIT_SECONDS)

    async def stream(self, generation: pb.Generation, **fields: Any) -> tuple[str, pb.GenerateResponse]:
        return await heard(self.open(generation, **fields))

    async def usage(self, calls: int, **fields: Any) -> list[pb.UsageRow]:
        """Returns the rows once `calls` calls are recorded, which takes up to a second."""
        request = pb.GetUsageRequest(**fields)
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                answer = await self.stub.GetUsage(request, metadata=self.member.key(), timeout=WAIT_SECONDS)
                if sum(row.call_count for row in answer.rows) >= calls:
                    return list(answer.rows)
                await asyncio.sleep(0.1)


async def heard(responses: Any) -> tuple[str, pb.GenerateResponse]:
    """Returns the streamed text and the answer."""
    text = ""
    async for response in responses:
        text += "".join(delta.text for delta in response.deltas)
        if response.HasField("finish"):
            return text, response.finish
    raise AssertionError("the stream ended without an answer")


@asynccontextmanager
async def serve(database: Database, **config: Any) -> AsyncGenerator[Served]:
    """Serves a configuration until the block ends."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(OpenAIChatServer())
        second = await stack.enter_async_context(AnthropicServer())
        vendors = {
            "first": {"adapter": "openai_chat", "base_url": f"{first.url}/v1", "model": MODEL, "api_key_env": VARIABLE},
            "second": {"adapter": "anthropic", "base_url": second.url, "api_key_env": VARIABLE},
        }
        made: Mapping[str, Any] = {"default": "first", "vendors": vendors, "max_attempts": 1, **config}
        opening = ProviderService.open(ProviderConfig.model_validate(made), {VARIABLE: KEY}, database)
        service = await stack.enter_async_context(opening)
        served = await stack.enter_async_context(member())
        served.server.add(
            "kfm.provider.v1.ProviderService", lambda server: add_ProviderServiceServicer_to_server(service, server)
        )
        channel = await stack.enter_async_context(await served.start())
        yield Served(ProviderServiceStub(channel), served, first, second)


@pytest.fixture
async def served(database: Database) -> AsyncGenerator[Served]:
    async with serve(database) as made:
        yield made


# --- once


async def test_a_repeat_while_the_first_runs_joins_it(served: Served) -> None:
    served.first.fault = Fault(stall_after=3)
    first = served.open(question(), request_id="turn-1/step-1")
    begun = await anext(aiter(first))
    second = served.open(question(), request_id="turn-1/step-1")
    assert (await anext(aiter(second))).deltas[0] == begun.deltas[0]

    first.cancel()
    other = await refusal(served.generate(question("Something else?"), request_id="turn-1/step-1"))

    assert other.reason == error_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert len(served.first.requests) == 1
    second.cancel()
    await served.first.wait_hung_up()


async def test_a_service_of_the_mesh_which_does_not_wait_for_the_disk_gets_one_answer_too(served: Served) -> None:
    token = served.member.keyring.mint(Principal("acme", "ann"))
    request = pb.GenerateRequest(generation=question(), request_id="turn-1/step-1")
    metadata = (("authorization", f"Bearer {token}"),)
    answers = [await served.stub.Generate(request, metadata=metadata, timeout=WAIT_SECONDS) for _ in range(3)]
    assert answers == answers[:1] * 3
    assert len(served.first.requests) == 1


async def test_a_repeat_after_a_failure_asks_again(served: Served) -> None:
    served.first.fault = Fault(status=503)
    failure = await refusal(served.generate(question(), request_id="turn-1/step-1"))
    assert failure.reason == error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE
    served.first.fault = Fault()
    assert text_of(await served.generate(question(), request_id="turn-1/step-1")) == "Ready to serve."


async def test_a_tenant_that_wants_an_answer_again_gets_it_at_no_cost(served: Served) -> None:
    hour = Duration(seconds=3600)
    first = await served.generate(question(), cache_ttl=hour)
    again = await served.generate(question(), cache_ttl=hour)
    streamed = await served.stream(question(), cache_ttl=hour)

    assert again.message == first.message
    assert streamed == ("Ready to serve.", again)
    assert (again.usage.cached_answer_count, again.usage.input_tokens, again.usage.cost.amount_micros) == (1, 0, 0)
    assert len(served.first.requests) == 1
    changed: list[dict[str, Any]] = [{"tenant": "umbrella", "cache_ttl": hour}, {}]
    for changes in changed:
        assert (await served.generate(question(), **changes)).usage.cost.amount_micros == ANSWER_MICROS
    await served.generate(question("Something else?"), cache_ttl=hour)
    assert len(served.first.requests) == 4


# --- an answer of a schema


async def test_an_answer_that_breaks_its_schema_goes_back_once_and_only_the_mended_one_is_told(served: Served) -> None:
    served.first.script = [Reply(texts=("Three.",)), Reply(texts=('{"n": ', "3}"))]

    text, answer = await served.stream(question(output_schema=COUNT))

    assert text == text_of(answer) == '{"n": 3}'
    assert answer.usage.cost.amount_micros == 2 * ANSWER_MICROS
    assert answer.usage.input_tokens == 2400
    [_, mended] = served.first.requests
    assert [message["role"] for message in mended.body["messages"][-2:]] == ["assistant", "user"]
    assert "not JSON" in mended.body["messages"][-1]["content"]


async def test_an_answer_that_breaks_its_schema_twice_fails_with_what_is_wrong(served: Served) -> None:
    served.first.reply = Reply(texts=('{"n": "three"}',))
    error = await refusal(served.generate(question(output_schema=COUNT)))
    assert error.reason == error_pb2.ERROR_REASON_PROVIDER_OUTPUT_INVALID
    assert error.metadata["problem"] == '$.n: "three" is not of type "integer"'
    assert len(served.first.requests) == 2

    served.first.reply = Reply(texts=('{"n": ',), finish="length")
    error = await refusal(served.generate(question(output_schema=COUNT)))
    assert "max_output_tokens" in error.message
    assert len(served.first.requests) == 3


async def test_what_is_no_schema_is_refused_before_anybody_is_asked(served: Served) -> None:
    error = await refusal(served.generate(question(output_schema=struct({"type": "text"}))))
    assert error.violations[0][0] == "generation.output_schema"
    assert served.first.requests == []


# --- another model

SMART = {"aliases": {"smart": ["first/gpt-6.1-sol", "second/claude-sonnet-5-5"]}}


async def test_another_model_answers_where_the_first_fails_before_its_first_word(database: Database) -> None:
    async with serve(database, **SMART) as served:
        served.first.fault = Fault(status=503)
        text, answer = await served.stream(question(model="smart"))
        assert (text, answer.provider) == ("Ready to serve.", "second")
        assert len(served.first.requests) == len(served.second.requests) == 1

        served.first.fault = Fault(cut_after=1)  # Only its head.
        assert await served.stream(question(model="smart")) == (text, answer)


async def test_no_text_comes_twice_where_the_first_fails_after_its_first_word(database: Database) -> None:
    async with serve(database, **SMART) as served:
        words = [b"to " in event for event in served.first.events(asked())]
        served.first.fault = Fault(cut_after=words.index(True) + 1)
        responses = served.open(question(model="smart"))
        text = ""
        while text != "Ready to ":
            text += "".join(delta.text for delta in (await responses.read()).deltas)
        error = await refusal(responses.read())
        assert error.metadata["delivered"] == "9"
        assert error.reason == error_pb2.ERROR_REASON_PROVIDER_CONNECTION
        assert served.second.requests == []


async def test_an_alias_is_the_tenants_before_everybodys_and_models_say_theirs(database: Database) -> None:
    own = {"tenant_aliases": {"acme": {"smart": ["second/claude-sonnet-5-5"]}}}
    async with serve(database, **SMART, **own) as served:
        assert (await served.generate(question(model="smart"))).provider == "second"
        assert (await served.generate(question(model="smart"), tenant="umbrella")).provider == "first"
        request = pb.ListModelsRequest(provider="second")
        listed = await served.stub.ListModels(request, metadata=served.member.key(), timeout=WAIT_SECONDS)
        [model] = [model for model in listed.models if model.aliases]
        assert (model.model, list(model.aliases)) == ("claude-sonnet-5-5", ["smart"])
        assert pb.ABILITY_TOOLS in model.abilities
        assert pb.ABILITY_EMBEDDINGS not in model.abilities


# --- what it cost

CASES: dict[str, tuple[Reply, Fault, bool]] = {
    "complete": (Reply(), Fault(), False),
    "cached tokens": (Reply(cached_tokens=1100), Fault(), False),
    "reasoning tokens": (Reply(reasoning_tokens=123, output_tokens=456), Fault(), False),
    **{f"cut at {at}": (Reply(), Fault(cut_after=at), False) for at in range(7)},
    **{f"an error at {at}": (Reply(), Fault(error_after=at, code="server_error"), False) for at in range(7)},
    **{f"cancelled at {at}": (Reply(), Fault(stall_after=at), True) for at in range(3, 6)},
    "cancelled before a word": (Reply(), Fault(stall_after=0), True),
}


async def ask(served: Served, vendor: Vendor, kind: str, session_id: str, asks: pb.Generation, stop: bool) -> None:
    """Ends a call as its case says. With `stop`, cancels it once the service has received all there is."""
    fields: dict[str, Any] = {"purpose": pb.Purpose(session_id=session_id), "request_id": session_id}
    call = served.generate(asks, **fields) if kind == "unary" else served.stream(asks, **fields)
    task = asyncio.ensure_future(call)
    if stop:
        await vendor.wait_asked()
        sent = vendor.events(asked())[: vendor.fault.stall_after]
        left = "".join(word for word in vendor.reply.texts if any(word.encode() in event for event in sent))
        listener = served.open(asks, **fields)
        while left:
            left = left.removeprefix("".join(delta.text for delta in (await listener.read()).deltas))
        listener.cancel()
        task.cancel()
        await vendor.wait_hung_up()
        vendor.forget_hang_ups()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("model", ["named", "alias"])
async def test_a_streamed_answer_costs_what_a_unary_one_does_to_the_micro_unit(
    name: str, model: str, database: Database
) -> None:
    models = {"first": "gpt-6.1-sol", "second": "claude-sonnet-5-5"}
    aliases = {"alias": [f"{name}/{models[name]}"]}
    async with serve(database, aliases=aliases, breaker={"failures": 1000}) as served:
        vendor = served.first if name == "first" else served.second
        asks = question(model="alias") if model == "alias" else question(provider=name, model=models[name])
        for case, (reply, fault, is_cancelled) in CASES.items():
            vendor.reply, vendor.fault = reply, fault
            for kind in ("unary", "streamed"):
                vendor.forget_hang_ups()
                await ask(served, vendor, kind, f"{case}, {kind}", asks, is_cancelled)

        rows = await served.usage(2 * len(CASES), dimensions=[pb.USAGE_DIMENSION_SESSION])

    used = {
        row.session_id: (row.usage, row.failed_call_count, row.unpriced_call_count, row.estimated_call_count)
        for row in rows
    }
    assert len(used) == 2 * len(CASES)
    for case in CASES:
        assert used[f"{case}, unary"] == used[f"{case}, streamed"], case
        assert used[f"{case}, unary"][2] == 0, case
    assert used["cut at 4, unary"][0].cost.amount_micros > 0
    assert used["cancelled at 4, unary"][0].cost.amount_micros > 0


async def test_usage_is_told_by_what_is_asked_for_and_to_its_tenant_alone(served: Served) -> None:
    await served.generate(question(), purpose=pb.Purpose(session_id="s", personality_id="guide"))
    await served.generate(question(provider="second"), purpose=pb.Purpose(session_id="s", personality_id="critic"))
    await served.generate(question(), tenant="umbrella")

    [row] = await served.usage(2, dimensions=[pb.USAGE_DIMENSION_SESSION, pb.USAGE_DIMENSION_PRINCIPAL])
    assert (row.session_id, row.principal_id, row.call_count, row.provider) == ("s", "ann", 2, "")
    models = await served.usage(2, dimensions=[pb.USAGE_DIMENSION_MODEL], session_id="s")
    assert [(row.provider, row.model, row.call_count) for row in models] == [
        ("first", "gpt-6.1-sol", 1),
        ("second", "claude-sonnet-5-5", 1),
    ]
    [row] = await served.usage(1, personality_id="guide")
    assert (row.call_count, row.usage.cost.amount_micros) == (1, ANSWER_MICROS)


# --- within budget


async def test_calls_at_once_never_spend_more_than_the_budget(database: Database) -> None:
    """Each call reserves 300 output tokens at 10 micro-USD, and its input: at most 33 of the 60 calls fit."""
    limited = question("Hi?", parameters=pb.GenerationParameters(max_output_tokens=300))
    async with serve(database, budgets=[{"cost_usd": 0.1}]) as served:
        served.first.reply = Reply(input_tokens=100, cached_tokens=0, output_tokens=300)

        async def one() -> pb.GenerateResponse | errors.AgentShellError:
            try:
                return await served.generate(limited)
            except grpc.aio.AioRpcError as error:
                return errors.of(error)

        outcomes = await asyncio.gather(*(one() for _ in range(60)))
        answers = [each for each in outcomes if isinstance(each, pb.GenerateResponse)]
        refusals = [each for each in outcomes if isinstance(each, errors.AgentShellError)]
        assert answers
        assert refusals
        assert sum(answer.usage.cost.amount_micros for answer in answers) <= 100_000
        assert {refused.reason for refused in refusals} == {error_pb2.ERROR_REASON_BUDGET_EXHAUSTED}
        assert all(refused.quotas and refused.retry_delay is None for refused in refusals)
        assert len(served.first.requests) == len(answers)
        assert text_of(await served.generate(limited, tenant="umbrella"))


async def test_a_model_without_a_price_is_refused_where_a_budget_of_money_applies(database: Database) -> None:
    async with serve(database, budgets=[{"tenant": "acme", "cost_usd": 1.0}]) as served:
        error = await refusal(served.generate(question(model="gpt-unheard-of")))
        assert error.reason == error_pb2.ERROR_REASON_PRICE_UNKNOWN
        assert served.first.requests == []
        answer = await served.generate(question(model="gpt-unheard-of"), tenant="umbrella")
        assert not answer.usage.HasField("cost")


async def test_a_budget_bounds_what_a_model_may_write(database: Database) -> None:
    async with serve(database, budgets=[{"cost_usd": 1.0}], default_max_output_tokens=512) as served:
        await served.generate(question())
        await served.generate(question(parameters=pb.GenerationParameters(max_output_tokens=64)))
        assert [request.body["max_completion_tokens"] for request in served.first.requests] == [512, 64]


async def test_a_turns_limit_of_tokens_bounds_each_answer_and_refuses_the_first_that_cannot_fit(served: Served) -> None:
    purpose = pb.Purpose(turn_id="t", max_turn_tokens=3200)
    for _ in range(3):  # The vendor uses 1,500 each, whatever the limit.
        await served.generate(question(), purpose=purpose)
    error = await refusal(served.generate(question(), purpose=purpose))
    assert (error.reason, error.metadata["left_tokens"]) == (error_pb2.ERROR_REASON_TOKEN_LIMIT, "0")
    allowed = [request.body["max_completion_tokens"] for request in served.first.requests]
    assert allowed == [3200 - 41, 3200 - 1500 - 41, 3200 - 3000 - 41]
    assert await served.generate(question(), purpose=pb.Purpose(turn_id="u", max_turn_tokens=3200))
