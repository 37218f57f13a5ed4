"""What calls are measured by: bounded labels, known costs, and failures by their reason."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from agentshell.provider import metrics
from kfm.content.v1 import content_pb2


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_model_that_is_not_priced_counts_as_other_and_adds_no_cost() -> None:
    labels = {"provider": "openai", "model": "other"}
    before = sample("agentshell_provider_tokens_total", kind="output", **labels)
    cost_before = REGISTRY.get_sample_value("agentshell_provider_cost_micros_total", {**labels, "currency": "USD"})

    with metrics.measure("chat", "openai", "a-name-from-a-request") as measurement:
        measurement.used(content_pb2.Usage(input_tokens=5, output_tokens=7), "a-name-from-a-request")

    assert sample("agentshell_provider_tokens_total", kind="output", **labels) == before + 7
    cost = REGISTRY.get_sample_value("agentshell_provider_cost_micros_total", {**labels, "currency": "USD"})
    assert cost == cost_before


def test_cached_tokens_are_counted_apart_and_known_costs_added() -> None:
    labels = {"provider": "openai", "model": "gpt-6-luna"}
    cost = content_pb2.Money(amount_micros=11, currency_code="USD")

    def figures() -> list[float]:
        kinds = ("input", "cached_input", "output")
        tokens = [sample("agentshell_provider_tokens_total", kind=kind, **labels) for kind in kinds]
        return [*tokens, sample("agentshell_provider_cost_micros_total", currency="USD", **labels)]

    before = figures()
    with metrics.measure("chat", "openai", "gpt-6-luna") as measurement:
        usage = content_pb2.Usage(input_tokens=10, cached_input_tokens=4, output_tokens=3, cost=cost)
        measurement.used(usage, "gpt-6-luna-2026-09-22")

    assert [after - was for after, was in zip(figures(), before, strict=True)] == [6, 4, 3, 11]


def test_a_cancelled_call_is_measured_as_such() -> None:
    labels = {"operation": "chat", "provider": "local", "model": "extract"}
    before = sample("agentshell_provider_errors_total", reason="CANCELLED", **labels)

    with pytest.raises(asyncio.CancelledError), metrics.measure("chat", "local", "extract"):
        raise asyncio.CancelledError

    assert sample("agentshell_provider_errors_total", reason="CANCELLED", **labels) == before + 1
