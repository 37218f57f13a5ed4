"""How attempts are measured: Prometheus metrics, and spans with OpenTelemetry's names."""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import REGISTRY

from agentshell.mesh.errors import AgentShellError
from agentshell.provider import metrics
from agentshell.provider.adapters.adapter import Adapter
from agentshell.provider.breaker import Breaker
from agentshell.provider.endpoint import Endpoint
from agentshell.provider.metrics import Measurement
from agentshell.provider.slots import Slots
from kfm.content.v1.content_pb2 import Money, Usage
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

USAGE = Usage(
    input_tokens=10,
    cached_input_tokens=4,
    cache_write_tokens=2,
    output_tokens=3,
    reasoning_tokens=1,
    cost=Money(amount_micros=11, currency_code="USD"),
)
FAILURE = AgentShellError(error_pb2.ERROR_REASON_PROVIDER_TIMEOUT, "too late")


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"agentshell_provider_{name}", labels) or 0.0


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Generator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(metrics, "TRACER", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def test_an_attempt_counts_its_time_its_tokens_apart_and_its_known_cost() -> None:
    model = {"provider": "figures", "model": "m"}
    subject = metrics.subject("chat", "figures", "figures", "m")
    measurement = Measurement(subject, "m")
    measurement.first_delta()
    measurement.end(USAGE, None)
    Measurement(subject, "m").end(Usage(), FAILURE)
    subject.failed(FAILURE)

    kinds = [sample("tokens_total", kind=kind, **model) for kind in ("input", "cached_input", "output")]
    assert kinds == [6, 4, 3]
    assert sample("cost_micros_total", currency="USD", **model) == 11
    assert sample("seconds_count", operation="chat", **model) == 2
    assert sample("first_delta_seconds_count", operation="chat", **model) == 1
    assert sample("errors_total", operation="chat", reason="PROVIDER_TIMEOUT", **model) == 2


def test_an_unknown_cost_is_not_counted_as_none() -> None:
    Measurement(metrics.subject("chat", "unpriced", "unpriced", "m"), "m").end(Usage(output_tokens=1), None)
    labels = {"provider": "unpriced", "model": "m", "currency": "USD"}
    assert REGISTRY.get_sample_value("agentshell_provider_cost_micros_total", labels) is None


def test_a_span_has_the_conventions_names(spans: InMemorySpanExporter) -> None:
    measurement = Measurement(metrics.subject("chat", "google", "gemini", "other"), "their-model")
    measurement.end(
        USAGE, None, pb.GenerateResponse(model="their-model-001", finish_reason=pb.FINISH_REASON_TOOL_CALLS)
    )

    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("chat their-model", trace.SpanKind.CLIENT)
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "their-model",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "their-model-001",
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.cache_creation.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 1,
    }


def test_a_failed_attempt_s_span_says_why(spans: InMemorySpanExporter) -> None:
    Measurement(metrics.subject("chat", "openai", "openai", "other"), "m").end(Usage(), FAILURE)

    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["error.type"] == "PROVIDER_TIMEOUT"
    assert span.status.status_code is trace.StatusCode.ERROR


def test_within_a_trace_that_is_not_sampled_there_is_no_span(spans: InMemorySpanExporter) -> None:
    tracer = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    with tracer.start_as_current_span("rpc"):
        Measurement(metrics.subject("chat", "openai", "openai", "other"), "m").end(Usage(), None)
    assert spans.get_finished_spans() == ()


async def test_an_endpoint_shows_its_breaker_and_its_calls() -> None:
    breaker, slots = Breaker(1, 10.0), Slots("shown#1", 2, 0)
    metrics.watch(Endpoint("shown#1", cast("Adapter", None), 1, breaker, slots))

    def shown() -> list[float]:
        names = ("breaker_state", "calls_active", "calls_waiting")
        return [sample(name, endpoint="shown#1") for name in names]

    assert shown() == [0, 0, 0]
    await slots.take()
    breaker.fails(breaker.ask(0) or 0, 0)
    assert shown() == [2, 1, 0]
    breaker.ask(10)
    assert shown() == [1, 1, 0]
