"""What the service does with every provider: gRPC in front, and an HTTP server that plays the vendor behind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from tests.contract.provider import (
    ASSISTANT,
    IMAGE,
    KEY,
    TOOL_CALL,
    USER,
    VARIABLE,
    VENDORS,
    asked,
    question,
    said,
    text_of,
)
from tests.contract.serving import Member, member, refusal
from tests.vendors.vendor_server import Fault, Reply, VendorServer

from agentshell.db.database import Database
from agentshell.mesh.config import ProviderConfig
from agentshell.provider import runs
from agentshell.provider.service import ProviderService
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb
from kfm.provider.v1 import provider_service_pb2_grpc

TIMEOUT_SECONDS = 20.0


@dataclass
class Served:
    """A provider under test: a service with it as the default, and the vendor behind it (None: it needs none)."""

    name: str
    stub: Any
    member: Member
    server: VendorServer | None

    @property
    def vendor(self) -> VendorServer:
        assert self.server is not None
        return self.server

    @property
    def asked(self) -> int:
        return len(self.server.requests) if self.server else 0

    async def call(self, method: str, request: Any, tenant: str = "acme", timeout: float = TIMEOUT_SECONDS) -> Any:
        return await getattr(self.stub, method)(request, metadata=self.member.key(tenant), timeout=timeout)

    async def generate(
        self, generation: pb.Generation, request_id: str = "", tenant: str = "acme"
    ) -> pb.GenerateResponse:
        return await self.call("Generate", pb.GenerateRequest(generation=generation, request_id=request_id), tenant)

    def open(self, generation: pb.Generation, request_id: str = "") -> Any:
        request = pb.StreamGenerateRequest(generation=generation, request_id=request_id)
        return self.stub.StreamGenerate(request, metadata=self.member.key(), timeout=TIMEOUT_SECONDS)

    async def stream(self, generation: pb.Generation, request_id: str = "") -> list[pb.StreamGenerateResponse]:
        return [response async for response in self.open(generation, request_id)]


@asynccontextmanager
async def serve(name: str, server: VendorServer | None, database: Database) -> AsyncGenerator[Served]:
    vendors: dict[str, Any] = {}
    if server:
        row = VENDORS[name]
        vendors[name] = {
            "adapter": name,
            "base_url": server.url + row.base_path,
            "model": row.model,
            "api_key_env": VARIABLE,
        }
    config = ProviderConfig.model_validate({"default": name, "vendors": vendors, "max_attempts": 1})
    async with ProviderService.open(config, {VARIABLE: KEY}, database) as service, member() as served:
        served.server.add(
            "kfm.provider.v1.ProviderService",
            lambda s: provider_service_pb2_grpc.add_ProviderServiceServicer_to_server(service, s),
        )
        async with await served.start() as channel:
            stub: Any = provider_service_pb2_grpc.ProviderServiceStub(channel)
            yield Served(name, stub, served, server)


@asynccontextmanager
async def served_of(name: str, database: Database) -> AsyncGenerator[Served]:
    if name == "local":
        async with serve(name, None, database) as served:
            yield served
        return
    async with VENDORS[name].server() as server, serve(name, server, database) as served:
        yield served


@pytest.fixture(params=["local", *VENDORS])
async def provider(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Served]:
    """Every provider."""
    async with served_of(request.param, database) as found:
        yield found


@pytest.fixture(params=list(VENDORS))
async def remote(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Served]:
    """Every provider with a vendor behind it."""
    async with served_of(request.param, database) as found:
        yield found


@pytest.fixture
async def local(database: Database) -> AsyncIterator[Served]:
    async with served_of("local", database) as found:
        yield found


async def test_a_streamed_answer_grows_to_the_one_that_generate_returns(provider: Served) -> None:
    responses = await provider.stream(question())

    whole = await provider.generate(question())
    assert responses[-1].finish == whole
    assert [response.HasField("finish") for response in responses[:-1]] == [False] * (len(responses) - 1)
    deltas = [delta for response in responses for delta in response.deltas]
    assert "".join(delta.text for delta in deltas) == text_of(whole) != ""
    assert (whole.provider, whole.finish_reason) == (provider.name, pb.FINISH_REASON_STOP)
    assert whole.usage.input_tokens > 0
    assert whole.usage.output_tokens > 0
    assert whole.usage.HasField("cost") == (provider.name != "openai_compatible")  # Its models have no prices.


async def test_words_that_follow_on_each_other_come_together_and_in_order(
    provider: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PACE_SECONDS", 3600.0)

    *begun, end = await provider.stream(question())

    assert sum(any(delta.text for delta in response.deltas) for response in begun) <= 1
    texts = [delta.text for response in (*begun, end) for delta in response.deltas]
    assert "".join(texts) == text_of(end.finish) != ""


async def test_what_a_request_leaves_out_is_the_configurations_default(provider: Served) -> None:
    listed = await provider.call("ListModels", pb.ListModelsRequest(provider=provider.name))
    (default,) = [model for model in listed.models if model.is_default]

    unnamed = await provider.generate(question())

    assert await provider.generate(question(provider=provider.name, model=default.model)) == unnamed
    assert await provider.generate(question(model=f"{provider.name}/{default.model}")) == unnamed
    assert unnamed.model.startswith(default.model)


async def test_a_repeated_request_id_returns_the_first_answer_and_calls_no_vendor(provider: Served) -> None:
    first = await provider.generate(question(), "turn-1/step-1")
    before = provider.asked
    if provider.server:
        provider.server.reply = Reply(texts=("Something else.",))

    again = await provider.generate(question(), "turn-1/step-1")
    streamed = await provider.stream(question(), "turn-1/step-1")

    assert again == first
    assert streamed[-1].finish == first
    assert "".join(delta.text for response in streamed for delta in response.deltas) == text_of(first)
    assert provider.asked == before


async def test_a_request_id_used_for_another_request_is_refused(local: Served) -> None:
    await local.stream(question(), "turn-1/step-1")

    error = await refusal(local.generate(question("Something else?"), "turn-1/step-1"))

    assert error.reason == error_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert error.metadata == {"request_id": "turn-1/step-1"}


async def test_a_request_id_is_its_tenants_own(local: Served) -> None:
    await local.generate(question(), "turn-1/step-1")

    other = await local.generate(question("What drains?"), "turn-1/step-1", tenant="umbrella")

    assert text_of(other)


async def test_an_answer_cut_at_any_event_is_never_kept_as_one(remote: Served) -> None:
    for at in range(3):
        remote.vendor.fault = Fault(cut_after=at)

        error = await refusal(remote.stream(question(), "turn-1/step-1"))

        assert (at, error.name) == (at, "PROVIDER_CONNECTION")
    remote.vendor.fault = Fault()
    assert text_of(await remote.generate(question(), "turn-1/step-1")) == "Ready to serve."


async def test_models_are_listed_page_by_page(local: Served) -> None:
    everything = await local.call("ListModels", pb.ListModelsRequest())

    pages: list[pb.Model] = []
    token = ""
    while not pages or token:
        page = await local.call("ListModels", pb.ListModelsRequest(page_size=4, page_token=token))
        assert 1 <= len(page.models) <= 4
        pages += page.models
        token = page.next_page_token

    assert pages == list(everything.models)
    assert {model.provider for model in pages} == {"local", "openai", "openai_chat", "anthropic", "gemini"}
    assert all(model.HasField("price") for model in pages)
    seeds = {model.provider for model in pages if pb.ABILITY_SEED in model.abilities}
    assert seeds == {"local", "openai_chat", "gemini"}


async def test_a_provider_without_a_default_model_lists_none(database: Database) -> None:
    config = ProviderConfig.model_validate(
        {"vendors": {"ollama": {"adapter": "openai_compatible", "base_url": "http://127.0.0.1:1/v1"}}}
    )
    async with ProviderService.open(config, {}, database) as service, member() as served:
        served.server.add(
            "kfm.provider.v1.ProviderService",
            lambda s: provider_service_pb2_grpc.add_ProviderServiceServicer_to_server(service, s),
        )
        async with await served.start() as channel:
            ollama = Served("ollama", provider_service_pb2_grpc.ProviderServiceStub(channel), served, None)

            listed = await ollama.call("ListModels", pb.ListModelsRequest(provider="ollama"))
            error = await refusal(ollama.generate(question(provider="ollama")))

    assert list(listed.models) == []
    assert error.reason == error_pb2.ERROR_REASON_MODEL_NOT_FOUND


async def test_an_unknown_provider_is_refused_with_those_that_there_are(local: Served) -> None:
    error = await refusal(local.generate(question(provider="skynet")))

    assert error.reason == error_pb2.ERROR_REASON_PROVIDER_NOT_FOUND
    assert error.metadata == {"provider": "skynet", "configured": "anthropic, gemini, local, openai, openai_chat"}


async def test_a_page_token_that_was_not_given_out_is_refused(local: Served) -> None:
    error = await refusal(local.call("ListModels", pb.ListModelsRequest(page_token="next!")))

    assert error.reason == error_pb2.ERROR_REASON_PAGE_TOKEN_INVALID


async def test_a_value_that_the_contract_does_not_know_is_refused_by_its_field(local: Served) -> None:
    unknown: Any = 99
    parameters, choice = pb.GenerationParameters(reasoning_effort=unknown), pb.ToolChoice(mode=unknown)

    error = await refusal(local.generate(question(parameters=parameters, tool_choice=choice)))

    fields = ["generation.parameters.reasoning_effort", "generation.tool_choice.mode"]
    assert (error.name, [field for field, _ in error.violations]) == ("INVALID_REQUEST", fields)


UNSUPPORTED: list[tuple[str, str, str, Any]] = [
    ("local", "images", "Generate", pb.Generation(messages=[said(USER, IMAGE)])),
    ("local", "tools", "Generate", question(tools=[pb.ToolDefinition(name="search")])),
    ("local", "tools", "Generate", pb.Generation(messages=[said(ASSISTANT, TOOL_CALL)])),
    ("local", "embeddings", "Embed", pb.EmbedRequest(texts=["a"])),
    ("local", "moderation", "Moderate", pb.ModerateRequest(texts=["a"])),
    ("anthropic", "seed", "Generate", question(parameters=pb.GenerationParameters(seed=1))),
    ("anthropic", "embeddings", "Embed", pb.EmbedRequest(texts=["a"])),
    ("anthropic", "moderation", "Moderate", pb.ModerateRequest(texts=["a"])),
    ("openai", "seed", "Generate", question(parameters=pb.GenerationParameters(seed=1))),
    ("openai", "stop", "Generate", question(parameters=pb.GenerationParameters(stop=["END"]))),
    ("openai", "images outside of user messages", "Generate", pb.Generation(messages=[said(ASSISTANT, IMAGE)])),
]


@pytest.mark.parametrize(("name", "feature", "method", "asks"), UNSUPPORTED)
async def test_what_a_provider_cannot_do_is_refused_by_name(
    name: str, feature: str, method: str, asks: Any, database: Database
) -> None:
    async with served_of(name, database) as provider:
        request = pb.GenerateRequest(generation=asks) if method == "Generate" else asks

        error = await refusal(provider.call(method, request))

        assert error.reason == error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED
        assert error.metadata == {"feature": feature, "provider": name}
        assert provider.asked == 0


@pytest.mark.parametrize("name", ["openai", "openai_chat", "anthropic"])
async def test_cached_and_reasoning_tokens_cost_what_the_table_says(name: str, database: Database) -> None:
    # In dollars a million tokens, these defaults cost 2 for input, 0.1 cached, 2.5 written to the cache, 10 for output.
    async with served_of(name, database) as provider:
        provider.vendor.reply = Reply(
            input_tokens=1000, cached_tokens=300, cache_write_tokens=100, output_tokens=50, reasoning_tokens=20
        )

        answer = await provider.generate(question())

        assert answer.usage == content_pb2.Usage(
            input_tokens=1000,
            output_tokens=50,
            cached_input_tokens=300,
            cache_write_tokens=100,
            reasoning_tokens=20,
            cost=content_pb2.Money(amount_micros=600 * 2 + 30 + 250 + 500, currency_code="USD"),
        )


async def test_a_model_without_a_price_has_an_unknown_cost(remote: Served) -> None:
    answer = await remote.generate(question(model=f"{remote.name}/brand-new"))

    assert answer.usage.input_tokens == 1200
    assert not answer.usage.HasField("cost")


async def test_vectors_have_their_cost(database: Database) -> None:
    async with served_of("openai", database) as openai:
        response = await openai.call("Embed", pb.EmbedRequest(texts=["a", "b", "c"], dimension=2))

        cost = content_pb2.Money(amount_micros=1, currency_code="USD")
        assert response == pb.EmbedResponse(
            embeddings=[pb.Embedding(values=[at, 0.5]) for at in range(3)],
            usage=content_pb2.Usage(input_tokens=21, cost=cost),
            provider="openai",
            model="text-embedding-3-small",
        )


async def test_texts_are_moderated(database: Database) -> None:
    async with served_of("openai", database) as openai:
        response = await openai.call("Moderate", pb.ModerateRequest(texts=["harm", "peace"]))

        assert [verdict.flagged for verdict in response.verdicts] == [True, False]


async def test_a_vendor_that_stalls_is_left_at_the_callers_deadline(database: Database) -> None:
    async with served_of("openai", database) as openai:
        openai.vendor.fault = Fault(stall_after=3)

        error = await refusal(openai.call("Generate", pb.GenerateRequest(generation=question()), timeout=1.5))

        assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
        if openai.asked:  # Otherwise time ran out before it got that far.
            await openai.vendor.wait_hung_up()


async def test_deltas_come_at_once_and_cancelling_closes_the_vendors_connection(remote: Served) -> None:
    words = [b"serve." in event for event in remote.vendor.events(asked())]
    remote.vendor.fault = Fault(stall_after=words.index(True) + 1)
    responses = remote.open(question())

    text = ""
    async for response in responses:  # The vendor sends no end, so all that comes is streamed before it.
        text += "".join(delta.text for delta in response.deltas)
        if text == "Ready to serve.":
            responses.cancel()
            break

    await remote.vendor.wait_hung_up()
