"""Calls through all vendors: what is tried where, what a caller sees of it, and what is recorded.

The vendors are `local` and adapters that play a script; the contract suite covers how real ones fail.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from prometheus_client import REGISTRY

from agentshell.mesh.config import ProviderConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.provider import adapters
from agentshell.provider.adapters.adapter import Access, Deltas, Kind, tell_nobody
from agentshell.provider.alarm import Alarm
from agentshell.provider.metering import Spent
from agentshell.provider.pricing import Band, PricedModel, Prices, PriceTable
from agentshell.provider.routing import Candidate
from agentshell.provider.vendors import BUILT_IN, Vendors
from kfm.content.v1 import content_pb2
from kfm.content.v1.content_pb2 import Money, Usage
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason
from kfm.provider.v1 import provider_service_pb2 as pb

Item = pb.GenerationDelta | pb.GenerateResponse
Said = Deltas | pb.GenerateResponse

QUESTION = content_pb2.Message(
    role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text=content_pb2.Text(text="What is it?"))]
)
GENERATION = pb.Generation(messages=[QUESTION])
USED = Usage(input_tokens=100, output_tokens=10)
WAIT_SECONDS = 20.0
A, B = Candidate("a", "m"), Candidate("b", "m")
PRICES = Prices(
    [
        PriceTable(
            date=date(2026, 11, 1),
            currency_code="USD",
            models=(
                PricedModel(provider="a", model="m", bands=(Band(input=1_000_000, output=5_000_000),)),
                PricedModel(provider="local", model="extract", bands=(Band(input=0, output=0),)),
            ),
        )
    ]
)


class Hang:
    """Makes a script wait until `go` is set, perhaps forever."""

    def __init__(self) -> None:
        self.go = asyncio.Event()


Script = Sequence[Item | AgentShellError | Exception | Hang]


class Scripted:
    """Plays one script for each call, then repeats the last one."""

    default_model = "m"

    def __init__(self, access: Access, scripts: Sequence[Script], abilities: Sequence[pb.Ability.ValueType]) -> None:
        self.access = access
        self.abilities = frozenset(abilities)
        self.models: list[str] = []
        self.under_way = 0
        self.hangs = asyncio.Event()
        self._scripts = scripts

    async def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Said]:
        script = self._scripts[min(len(self.models), len(self._scripts) - 1)]
        self.models.append(model)
        self.under_way += 1
        try:
            for item in script:
                if isinstance(item, Hang):
                    self.hangs.set()
                    await item.go.wait()
                elif isinstance(item, Exception):
                    raise item
                elif isinstance(item, pb.GenerationDelta):  # A copy, for what is yielded belongs to its reader.
                    yield [pb.GenerationDelta.FromString(item.SerializeToString())]
                else:
                    yield pb.GenerateResponse.FromString(item.SerializeToString())
        finally:
            self.under_way -= 1

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        async with aclosing(self.stream(GENERATION, model)) as items:
            async for _ in items:
                pass
        vectors = [pb.Embedding(values=[1.0] * dimension) for _ in texts]
        return pb.EmbedResponse(embeddings=vectors, usage=Usage(input_tokens=100), model="m-2026-11-01")

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        return pb.ModerateResponse(verdicts=[pb.Verdict() for _ in texts], model=model)

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        return pb.CountTokensResponse(input_tokens=7, model=model)

    async def close(self) -> None:
        """Has nothing to release."""


class Stage:
    """Vendors whose scripts are chosen by the base URL of their endpoints: `a1` is the first of vendor `a`."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        scripts: Mapping[str, Sequence[Script]],
        abilities: Sequence[pb.Ability.ValueType] = (),
        limits: Mapping[str, int] | None = None,
        **config: Any,
    ) -> None:
        self.adapters: dict[str, Scripted] = {}

        def build(access: Access) -> Scripted:
            scripted = Scripted(access, scripts.get(access.base_url, [[]]), abilities)
            self.adapters[access.base_url] = scripted
            return scripted

        monkeypatch.setattr(adapters, "KINDS", {**adapters.KINDS, "script": Kind(build)})
        vendors: dict[str, Any] = {url[0]: {"adapter": "script", "endpoints": [], **(limits or {})} for url in scripts}
        for url in scripts:
            vendors[url[0]]["endpoints"].append({"base_url": url})
        self.vendors = Vendors(ProviderConfig.model_validate({"vendors": vendors, **config}), {}, PRICES)
        self.spent: list[Spent] = []

    async def read(self, *candidates: Candidate, seconds: float = WAIT_SECONDS) -> list[Item]:
        """Returns all streamed items and the answer."""
        deadline, told = time.monotonic() + seconds, list[Item]()
        answer = await self.vendors.generate(candidates, GENERATION, deadline, self.spent, told.extend)
        return [*told, answer]

    async def fail(self, *candidates: Candidate, seconds: float = WAIT_SECONDS) -> AgentShellError:
        with pytest.raises(AgentShellError) as caught:
            await self.read(*candidates, seconds=seconds)
        return caught.value

    @property
    def calls(self) -> dict[str, int]:
        return {url: len(adapter.models) for url, adapter in self.adapters.items() if adapter.models}

    @property
    def failures(self) -> list[str]:
        return [each.failure.name if each.failure else "" for each in self.spent]


def failure(name: str, seconds: float | None = 0.0) -> AgentShellError:
    delay = None if seconds is None else timedelta(seconds=seconds)
    return AgentShellError(ErrorReason.Value(f"ERROR_REASON_{name}"), name, retry_delay=delay)


def text(words: str) -> pb.GenerationDelta:
    return pb.GenerationDelta(text=words)


def answer(words: str = "It is.", usage: Usage | None = USED) -> pb.GenerateResponse:
    message = content_pb2.Message(
        role=content_pb2.ROLE_ASSISTANT, parts=[content_pb2.Part(text=content_pb2.Text(text=words))]
    )
    return pb.GenerateResponse(
        message=message, finish_reason=pb.FINISH_REASON_STOP, usage=usage, provider="a", model="m-001"
    )


def priced(usage: Usage, micros: int) -> Usage:
    found = Usage()
    found.CopyFrom(usage)
    found.cost.CopyFrom(Money(amount_micros=micros, currency_code="USD"))
    return found


GOOD: Script = [text("It "), text("is."), answer()]
DOWN: Script = [failure("PROVIDER_UNAVAILABLE")]
SAID = pb.GenerationDelta(usage=Usage(input_tokens=100, output_tokens=1))
NOTHING = priced(Usage(), 0)


async def test_an_answer_comes_with_its_cost_and_is_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, {"a1": [GOOD]})
    cost = priced(USED, 150)

    assert await stage.read(A) == [text("It "), text("is."), answer(usage=cost)]
    assert stage.spent == [Spent("a", "m", cost)]


async def test_a_passing_failure_before_any_content_is_tried_again_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [DOWN, [SAID, *DOWN], GOOD]})

    items = await stage.read(A)

    assert items == [SAID, text("It "), text("is."), answer(usage=priced(USED, 150))]
    assert [each.usage for each in stage.spent] == [NOTHING, NOTHING, priced(USED, 150)]  # Failures are not billed.
    assert stage.failures == ["PROVIDER_UNAVAILABLE", "PROVIDER_UNAVAILABLE", ""]


async def test_a_failure_after_content_ends_the_stream_and_is_never_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut: Sequence[Script] = [[SAID, text("It is"), failure("PROVIDER_CONNECTION")]]
    stage = Stage(monkeypatch, {"a1": cut, "a2": cut, "b1": [GOOD]})

    error = await stage.fail(Candidate("a", ""), B)

    assert error.metadata["delivered"] == "5"
    used = priced(Usage(input_tokens=100, output_tokens=3, estimated=True), 115)
    assert stage.spent == [Spent("a", "m", used, error)]
    assert sum(stage.calls.values()) == 1


async def test_endpoints_and_then_candidates_are_asked_until_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [DOWN], "a2": [[failure("PROVIDER_KEY_INVALID")]], "b1": [GOOD]})

    items = await stage.read(A, B)

    assert items[-1] == answer()  # The price of b's model is unknown, which is not zero.
    assert stage.calls == {"a1": 3, "a2": 1, "b1": 1}
    assert [each.provider for each in stage.spent] == ["a"] * 4 + ["b"]


async def test_the_last_failure_is_the_callers_with_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = failure("PROVIDER_RATE_LIMITED", 3600)
    stage = Stage(monkeypatch, {"a1": [DOWN], "b1": [[limited]]})

    assert await stage.fail(A, B) is limited
    assert stage.calls == {"a1": 3, "b1": 1}


async def test_an_endpoint_that_limits_the_rate_or_refuses_its_key_is_tried_last_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited, refused = failure("PROVIDER_RATE_LIMITED", 30), failure("PROVIDER_KEY_INVALID")
    stage = Stage(monkeypatch, {"a1": [[limited]], "a2": [[refused]], "a3": [GOOD]})

    for _ in range(40):  # At random each endpoint comes first sooner or later; a failing one is tried only once.
        await stage.read(A)

    assert stage.calls == {"a1": 1, "a2": 1, "a3": 40}


async def test_a_budget_that_is_exhausted_is_never_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [[failure("BUDGET_EXHAUSTED", 0)]], "b1": [GOOD]})

    assert (await stage.fail(A, B)).reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED
    assert stage.calls == {"a1": 1}


@pytest.mark.parametrize("words", ["", "It is"])
async def test_at_the_deadline_the_vendor_is_closed_and_its_breaker_spared(
    monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    script: Script = [*([text(words)] if words else []), Hang()]
    stage = Stage(monkeypatch, {"a1": [script], "b1": [GOOD]}, breaker={"failures": 1})

    error = await stage.fail(A, B, seconds=0.5)

    delivered = {"delivered": "5"} if words else {}
    assert error.reason == error_pb2.ERROR_REASON_PROVIDER_TIMEOUT
    assert error.metadata == {"provider": "a", **delivered}
    assert (stage.failures, stage.adapters["a1"].under_way) == (["PROVIDER_TIMEOUT"], 0)
    assert stage.vendors.find("a").endpoints[0].breaker.refused_seconds(time.monotonic()) == 0


async def test_a_cancelled_caller_closes_the_vendor_and_what_came_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [[SAID, text("It "), Hang()]]})
    task = asyncio.create_task(stage.read(A))
    await asyncio.wait_for(stage.adapters["a1"].hangs.wait(), WAIT_SECONDS)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert stage.adapters["a1"].under_way == 0
    assert stage.vendors.find("a").endpoints[0].slots.in_use == 0
    used = priced(Usage(input_tokens=100, output_tokens=2, estimated=True), 110)
    assert [(each.usage, each.failure and each.failure.name) for each in stage.spent] == [(used, "CANCELLED")]


async def test_an_endpoint_that_fails_too_often_is_left_alone_and_the_next_model_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, {"a1": [DOWN], "b1": [GOOD]}, breaker={"failures": 2, "open_seconds": 60})

    refusal = await stage.fail(A)
    assert refusal.reason == error_pb2.ERROR_REASON_PROVIDER_CIRCUIT_OPEN
    assert refusal.retry_delay is not None
    assert timedelta(seconds=50) < refusal.retry_delay <= timedelta(seconds=60)
    assert refusal.metadata == {"provider": "a", "model": "m", "endpoint": "a#1"}

    assert (await stage.read(A, B))[-1] == answer()
    assert stage.calls == {"a1": 2, "b1": 1}
    assert stage.failures == ["PROVIDER_UNAVAILABLE"] * 2 + [""], "a call that was not made spent nothing"


async def test_a_full_endpoint_refuses_and_another_takes_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"max_concurrent_calls": 1, "max_waiting_calls": 0}
    stage = Stage(monkeypatch, {"a1": [[Hang()]], "b1": [GOOD]}, limits=limits)
    hanging = asyncio.create_task(stage.read(A))
    await asyncio.wait_for(stage.adapters["a1"].hangs.wait(), WAIT_SECONDS)

    assert (await stage.fail(A)).reason == error_pb2.ERROR_REASON_OVERLOADED
    assert (await stage.read(A, B))[-1] == answer()

    hanging.cancel()
    await asyncio.wait([hanging])


async def test_a_call_that_waits_for_its_turn_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [[Hang()]]}, limits={"max_concurrent_calls": 1})
    hanging = asyncio.create_task(stage.read(A))
    await asyncio.wait_for(stage.adapters["a1"].hangs.wait(), WAIT_SECONDS)

    assert (await stage.fail(A, seconds=0.02)).reason == error_pb2.ERROR_REASON_PROVIDER_TIMEOUT
    assert (stage.calls, stage.spent) == ({"a1": 1}, [])

    hanging.cancel()
    await asyncio.wait([hanging])


async def test_who_waited_for_an_endpoint_that_failed_meanwhile_is_refused_and_keeps_no_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hang, limits, breaker = Hang(), {"max_concurrent_calls": 1}, {"failures": 1, "open_seconds": 60}
    stage = Stage(monkeypatch, {"a1": [[hang, *DOWN]]}, limits=limits, breaker=breaker, max_attempts=1)
    endpoint = stage.vendors.find("a").endpoints[0]
    first = asyncio.create_task(stage.fail(A))
    await asyncio.wait_for(stage.adapters["a1"].hangs.wait(), WAIT_SECONDS)
    second = asyncio.create_task(stage.fail(A))
    await asyncio.sleep(0)
    assert endpoint.slots.waiting == 1

    hang.go.set()

    assert [(await task).name for task in (first, second)] == ["PROVIDER_UNAVAILABLE", "PROVIDER_CIRCUIT_OPEN"]
    assert (endpoint.slots.in_use, stage.calls) == (0, {"a1": 1})


async def test_a_call_that_is_over_is_not_remembered_until_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [GOOD]})

    made, left = 0, WeakSet[Alarm]()

    class Watched(Alarm):
        def __init__(self, deadline: float) -> None:
            nonlocal made
            super().__init__(deadline)
            made += 1
            left.add(self)

    monkeypatch.setattr("agentshell.provider.vendors.Alarm", Watched)
    await stage.read(A)
    gc.collect()
    assert (made, len(left)) == (1, 0)


async def test_a_defect_of_an_adapter_frees_its_slot_and_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [[KeyError("defect")], []], "b1": [GOOD]})

    with pytest.raises(KeyError):
        await stage.read(A, B)
    with pytest.raises(RuntimeError, match="a#1 ended without an answer"):
        await stage.read(A, B)

    assert stage.failures == ["INTERNAL", "INTERNAL"]
    assert stage.vendors.find("a").endpoints[0].slots.in_use == 0


async def test_a_model_that_cannot_do_what_is_asked_is_passed_over_or_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, {"a1": [GOOD]}, [pb.ABILITY_TOOLS])
    generation = pb.Generation(messages=[QUESTION], tools=[pb.ToolDefinition(name="find")])
    deadline = time.monotonic() + WAIT_SECONDS
    local = Candidate("local", "")

    found = await stage.vendors.generate([local, A], generation, deadline, stage.spent, tell_nobody)
    assert found == answer(usage=priced(USED, 150))
    with pytest.raises(AgentShellError) as caught:
        await stage.vendors.generate([local], generation, deadline, stage.spent, tell_nobody)

    assert caught.value.reason == error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED
    assert caught.value.metadata == {"feature": "tools", "provider": "local"}
    assert [each.provider for each in stage.spent] == ["a"]


async def test_vectors_come_from_one_model_however_often_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    abilities = [pb.ABILITY_EMBEDDINGS, pb.ABILITY_DIMENSION]
    stage = Stage(monkeypatch, {"a1": [DOWN], "b1": [[]]}, abilities)
    request = pb.EmbedRequest(texts=["x", "y"], dimension=2)
    deadline = time.monotonic() + WAIT_SECONDS

    with pytest.raises(AgentShellError):
        await stage.vendors.embed([A, Candidate("b", "other")], request, deadline, stage.spent)
    assert (stage.calls, stage.failures) == ({"a1": 3}, ["PROVIDER_UNAVAILABLE"] * 3)

    response = await stage.vendors.embed([A, B], request, deadline, stage.spent)
    assert [list(each.values) for each in response.embeddings] == [[1, 1], [1, 1]]
    assert stage.spent[-1] == Spent("b", "m", Usage(input_tokens=100))


async def test_vectors_of_a_vendors_default_are_priced_by_its_name_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, {"a1": [[]]}, [pb.ABILITY_EMBEDDINGS])
    request = pb.EmbedRequest(texts=["x"])

    response = await stage.vendors.embed([Candidate("a", "")], request, time.monotonic() + WAIT_SECONDS, stage.spent)

    assert response.usage == priced(Usage(input_tokens=100), 100)
    assert stage.spent == [Spent("a", "m-2026-11-01", response.usage)]


async def test_verdicts_and_counts_go_the_same_way_and_spend_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [[]]}, [pb.ABILITY_MODERATION])
    deadline = time.monotonic() + WAIT_SECONDS

    verdicts = await stage.vendors.moderate([A], pb.ModerateRequest(texts=["x"]), deadline)
    count = await stage.vendors.count_tokens([Candidate("a", "")], GENERATION, deadline)

    assert verdicts == pb.ModerateResponse(verdicts=[pb.Verdict()], model="m")
    assert count == pb.CountTokensResponse(input_tokens=7, model="m")
    for refused in (
        stage.vendors.moderate([Candidate("local", "")], pb.ModerateRequest(texts=["x"]), deadline),
        stage.vendors.embed([A], pb.EmbedRequest(texts=["x"], dimension=3), deadline, stage.spent),
    ):
        with pytest.raises(AgentShellError) as caught:
            await refused
        assert caught.value.reason == error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED


async def test_the_local_provider_answers_without_configuration() -> None:
    vendors = Vendors(ProviderConfig(), {}, PRICES)
    spent: list[Spent] = []
    deadline = time.monotonic() + WAIT_SECONDS

    told: Deltas = []
    response = await vendors.generate([Candidate("local", "")], GENERATION, deadline, spent, told.extend)

    assert response.message.parts[0].text.text == "".join(delta.text for delta in told)
    assert spent == [Spent("local", "extract", response.usage)]
    assert response.usage.cost == Money(currency_code="USD")
    await vendors.close()


def test_a_provider_or_alias_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [GOOD]})
    with pytest.raises(AgentShellError) as caught:
        stage.vendors.find("nobody")
    assert caught.value.metadata == {
        "provider": "nobody",
        "configured": "a, anthropic, gemini, local, openai, openai_chat",
    }

    with pytest.raises(AgentShellError) as caught:
        Stage(monkeypatch, {}, tenant_aliases={"acme": {"smart": ["a/m", "openai/m"]}})
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert caught.value.metadata["key"] == "provider.tenant_aliases.acme.smart"


def test_the_nearest_place_says_where_a_key_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[Access] = []

    def build(access: Access) -> Scripted:
        built.append(access)
        return Scripted(access, [[]], [])

    kind = Kind(build, "USUAL_KEY", prices="a")
    monkeypatch.setattr(adapters, "KINDS", dict.fromkeys((*BUILT_IN, "script"), kind))
    file = tmp_path / "key"
    file.write_text("from a file\n")
    environment = {"USUAL_KEY": "usual", "VENDOR_KEY": "vendor's", "OWN_KEY": "its own"}
    endpoints = [{"api_key_env": "OWN_KEY"}, {"api_key_file": str(file), "base_url": "elsewhere"}, {"weight": 2}]
    config = {
        "x": {
            "adapter": "script",
            "api_key_env": "VENDOR_KEY",
            "base_url": "here",
            "model": "m",
            "endpoints": endpoints,
        }
    }

    vendors = Vendors(ProviderConfig.model_validate({"vendors": config}), environment, PRICES)

    found = [(access.key.read(), access.base_url, access.model) for access in built if access.provider == "x"]
    assert found == [("its own", "here", "m"), ("from a file", "elsewhere", "m"), ("vendor's", "here", "m")]
    assert [(each.label, each.weight) for each in vendors.find("x").endpoints] == [("x#1", 1), ("x#2", 1), ("x#3", 2)]
    assert [access.key.read() for access in built if access.provider == "openai"] == ["usual"]
    assert vendors.prices_name("x") == "a"


async def test_models_that_nobody_knows_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a1": [GOOD], "b1": [GOOD]}, aliases={"smart": ["b/configured"]})

    def counted(provider: str, model: str) -> float:
        labels = {"operation": "chat", "provider": provider, "model": model}
        return REGISTRY.get_sample_value("agentshell_provider_seconds_count", labels) or 0.0

    subjects = [("a", "m"), ("a", "other"), ("b", "configured"), ("b", "m"), ("b", "other")]
    before = [counted(*subject) for subject in subjects]
    for provider, model in (
        ("a", "m-2026-01-01"),
        ("a", "unheard"),
        ("b", "configured"),
        ("b", "m"),
        ("b", "unheard-of"),
    ):
        await stage.read(Candidate(provider, model))

    grown = [counted(*subject) - was for subject, was in zip(subjects, before, strict=True)]
    assert grown == [1, 1, 1, 1, 1]
    assert counted("a", "m-2026-01-01") == 0
