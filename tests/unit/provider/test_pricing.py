"""Costs are exact, rounded once, and unknown rather than wrong."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.provider import pricing
from kfm.content.v1 import content_pb2

tokens = st.integers(min_value=0, max_value=10**6)


def usage(input_tokens: int, output_tokens: int, cached: int = 0) -> content_pb2.Usage:
    return content_pb2.Usage(input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached)


@settings(max_examples=50)
@given(fresh=tokens, cached=tokens, written=tokens, output=tokens)
def test_a_cost_is_the_exact_sum_rounded_up_once(fresh: int, cached: int, written: int, output: int) -> None:
    cost = pricing.cost("anthropic", "claude-opus-5-5", usage(fresh + cached + written, output, cached), written)

    exact = Fraction(4_000_000 * fresh + 200_000 * cached + 5_000_000 * written + 20_000_000 * output, 1_000_000)
    assert cost == content_pb2.Money(amount_micros=ceil(exact), currency_code="USD")


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("openai", "gpt-6-luna-2026-09-22", 100 + 500),  # A snapshot costs what its model costs.
        ("anthropic", "claude-haiku-4-5-20251001", 1000 + 5000),
        ("local", "extract", 0),
        ("openai", "gpt-99", None),
        ("skynet", "gpt-6-luna", None),
    ],
)
def test_a_model_is_found_by_its_name_and_by_that_of_a_snapshot(
    provider: str, model: str, expected: int | None
) -> None:
    cost = pricing.cost(provider, model, usage(1000, 1000))

    assert (cost.amount_micros if cost else None) == expected


@pytest.mark.parametrize(
    ("model", "input_tokens", "expected"),
    [
        ("gpt-6-luna", 272_000, 27_200 + 1),
        ("gpt-6-luna", 272_001, 54_401 + 1),
        ("gpt-6.1-sol", 272_000, 544_000 + 20),
        ("gpt-6.1-sol", 272_001, None),  # The table does not know the price of so long a request.
    ],
)
def test_a_long_request_has_the_price_of_its_band_or_an_unknown_one(
    model: str, input_tokens: int, expected: int | None
) -> None:
    cost = pricing.cost("openai", model, usage(input_tokens, 2))

    assert (cost.amount_micros if cost else None) == expected


def test_tokens_of_a_kind_without_a_price_make_the_cost_unknown() -> None:
    assert pricing.cost("openai", "gpt-6-astra", usage(10, 1), cache_write_tokens=0) is not None
    assert pricing.cost("openai", "gpt-6-astra", usage(10, 1), cache_write_tokens=1) is None


def test_a_default_that_the_table_does_not_have_is_listed_without_a_price() -> None:
    listed = pricing.models("openai", "my-own")

    (default,) = [model for model in listed if model.is_default]
    assert (default.model, default.HasField("price")) == ("my-own", False)
    assert len({model.model for model in listed}) == len(listed)
