"""Costs are exact, rounded once, and unknown rather than wrong."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.pricing import Band, PricedModel, Prices, PriceTable
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

PRICES = Prices.load()

counts = st.integers(min_value=0, max_value=10**6)
prices = st.integers(min_value=0, max_value=10**8)
maybe_prices = st.none() | prices
bands = st.builds(
    Band,
    input=prices,
    cached_input=maybe_prices,
    cache_write=maybe_prices,
    image_input=maybe_prices,
    audio_input=maybe_prices,
    output=maybe_prices,
    reasoning=maybe_prices,
    audio_output=maybe_prices,
)
usages = st.builds(
    content_pb2.Usage,
    input_tokens=counts,
    cached_input_tokens=counts,
    cache_write_tokens=counts,
    image_input_tokens=counts,
    audio_input_tokens=counts,
    output_tokens=counts,
    reasoning_tokens=counts,
    audio_output_tokens=counts,
)


def priced(*bands: Band, **fields: Any) -> PricedModel:
    return PricedModel(provider="acme", model="m", bands=bands, **fields)


def table(*models: PricedModel) -> PriceTable:
    return PriceTable(date=date(2026, 11, 21), currency_code="USD", models=models)


def micros(cost: content_pb2.Money | None) -> int | None:
    return cost.amount_micros if cost else None


def usage(input_tokens: int, output_tokens: int, **kinds: int) -> content_pb2.Usage:
    used = content_pb2.Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    for name, tokens in kinds.items():
        setattr(used, name, tokens)
    return used


@settings(max_examples=50)
@given(st.tuples(*[counts] * 8))
def test_a_cost_is_the_exact_sum_over_all_kinds_rounded_up_once(tokens: tuple[int, ...]) -> None:
    rates = (7, 3, 11, 13, 17, 19, 23, 29)  # Micro-USD for a million tokens: a token costs a tiny fraction.
    names = (
        "input",
        "cached_input",
        "cache_write",
        "image_input",
        "audio_input",
        "output",
        "reasoning",
        "audio_output",
    )
    fresh, cached, written, image, audio, said, thought, spoken = tokens
    used = usage(
        fresh + cached + written + image + audio,
        said + thought + spoken,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        image_input_tokens=image,
        audio_input_tokens=audio,
        reasoning_tokens=thought,
        audio_output_tokens=spoken,
    )
    model = Prices([table(priced(Band(**dict(zip(names, rates, strict=True)))))])

    exact = Fraction(sum(count * rate for count, rate in zip(tokens, rates, strict=True)), 1_000_000)
    assert model.cost("acme", "m", used) == content_pb2.Money(amount_micros=ceil(exact), currency_code="USD")


@settings(max_examples=100)
@given(
    st.lists(bands, min_size=1, max_size=3), st.lists(counts, min_size=2, max_size=2, unique=True), usages, st.data()
)
def test_no_usage_within_the_bounds_costs_more_than_the_bound(
    drawn: list[Band], ends: list[int], used: content_pb2.Usage, data: st.DataObject
) -> None:
    limits: list[int | None] = [*sorted(ends)[: len(drawn) - 1], data.draw(st.none() | st.just(2 * 10**6))]
    rows = [band.model_copy(update={"up_to_input_tokens": end}) for band, end in zip(drawn, limits, strict=True)]
    model = Prices([table(priced(*rows))])
    most_input = data.draw(st.integers(used.input_tokens, 10**6 + 1))
    most_output = data.draw(st.integers(used.output_tokens, 10**6 + 1))

    bound, cost = model.bound("acme", "m", most_input, most_output), model.cost("acme", "m", used)

    if bound is not None and cost is not None:
        assert cost.amount_micros <= bound
    unpriced_output = any(band.output is None for band in rows[: 1 + sum(most_input > (e or 0) for e in limits[:-1])])
    assert (bound is None) == (most_output > 0 and unpriced_output)


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("openai", "gpt-6-luna-2026-09-22", 100 + 500),  # A snapshot has its model's price.
        ("anthropic", "claude-haiku-4-5-20251001", 1000 + 5000),
        ("gemini", "gemini-2.5-flash", 300 + 2500),
        ("local", "extract", 0),
        ("openai", "text-embedding-3-small", None),  # It has no output price: with output tokens, the cost is unknown.
        ("openai", "gpt-99", None),
        ("skynet", "gpt-6-luna", None),
    ],
)
def test_a_model_is_found_by_its_name_and_by_that_of_a_snapshot(name: str, model: str, expected: int | None) -> None:
    assert micros(PRICES.cost(name, model, usage(1000, 1000))) == expected


def test_models_for_vectors_and_verdicts_are_priced_by_what_they_read() -> None:
    assert micros(PRICES.cost("openai", "text-embedding-3-large", usage(1_000_000, 0))) == 130_000
    assert PRICES.bound("gemini", "gemini-embedding-2", 1_000_000, 0) == 6_500_000  # All of it may be audio.
    assert PRICES.bound("openai", "omni-moderation-latest", 1_000_000, 0) == 0


@pytest.mark.parametrize(
    ("model", "input_tokens", "expected"),
    [
        ("gpt-6-luna", 272_000, 27_200 + 1),
        ("gpt-6-luna", 272_001, 54_401 + 1),
        ("gpt-6-astra", 272_000, 2_720_000 + 100),
        ("gpt-6-astra", 272_001, None),  # The table has no price for so long a request.
    ],
)
def test_a_long_request_has_the_price_of_its_band_or_an_unknown_one(
    model: str, input_tokens: int, expected: int | None
) -> None:
    assert micros(PRICES.cost("openai", model, usage(input_tokens, 2))) == expected
    assert (PRICES.bound("openai", model, input_tokens, 2) is None) == (expected is None)


@pytest.mark.parametrize("kind", ["cached_input", "cache_write", "audio_input", "audio_output"])
def test_tokens_of_a_kind_without_a_price_make_the_cost_unknown(kind: str) -> None:
    model = Prices([table(priced(Band(input=5, output=7)))])

    assert micros(model.cost("acme", "m", usage(1_000_000, 1_000_000))) == 12
    assert model.cost("acme", "m", usage(1_000_000, 1_000_000, **{f"{kind}_tokens": 1})) is None


def test_pictures_and_reasoning_without_a_price_of_their_own_are_paid_as_what_they_are_part_of() -> None:
    model = Prices([table(priced(Band(input=5, output=7)))])

    used = usage(2_000_000, 3_000_000, image_input_tokens=1_000_000, reasoning_tokens=1_000_000)
    assert micros(model.cost("acme", "m", used)) == 10 + 21


def test_a_token_of_two_kinds_is_paid_once() -> None:
    model = Prices([table(priced(Band(input=5, cached_input=1, image_input=100)))])

    assert micros(model.cost("acme", "m", usage(10**6, 0, cached_input_tokens=10**6, image_input_tokens=10**6))) == 1


def test_a_price_with_a_last_day_gives_way_to_the_next_or_to_none() -> None:
    rows = table(priced(Band(input=5), until=date(2026, 12, 31)), priced(Band(input=9), until=date(2027, 12, 31)))

    def cost_on(*day: int) -> int | None:
        return micros(Prices([rows], today=lambda: date(*day)).cost("acme", "m", usage(10**6, 0)))

    assert [cost_on(2026, 12, 31), cost_on(2027, 1, 1), cost_on(2028, 1, 1)] == [5, 9, None]


def test_a_default_that_the_table_does_not_have_is_listed_without_a_price() -> None:
    listed = PRICES.models("openai", "my-own")

    assert {model.provider for model in listed} == {"openai"}
    assert [model for model in listed if model.is_default] == [
        pb.Model(provider="openai", model="my-own", is_default=True)
    ]
    assert len({model.model for model in listed}) == len(listed)


def test_a_listed_model_has_the_prices_of_its_smallest_requests() -> None:
    (flash,) = [m for m in PRICES.models("gemini", "gemini-2.5-flash") if m.is_default]

    assert flash == pb.Model(
        provider="gemini",
        model="gemini-2.5-flash",
        description="Google's Gemini 2.5 Flash.",
        is_default=True,
        price=pb.Price(
            currency_code="USD",
            input_micros_per_million_tokens=300_000,
            cached_input_micros_per_million_tokens=30_000,
            audio_input_micros_per_million_tokens=1_000_000,
            output_micros_per_million_tokens=2_500_000,
        ),
    )


ROW = '[[models]]\nprovider = "openai"\nmodel = "{model}"\nbands = [{{ {band} }}]\n'
HEAD = 'date = 2026-11-21\ncurrency_code = "USD"\n'


@pytest.fixture
def prices_file(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def test_a_prices_file_comes_before_the_table_that_ships(prices_file: Path) -> None:
    rows = [ROW.format(model=m, band="input = 3_000_000, output = 1") for m in ("gpt-6-luna", "my-own")]
    prices_file.write_text(HEAD + "".join(rows))

    mine = Prices.load(prices_file)

    costs = [micros(mine.cost("openai", m, usage(10, 0))) for m in ("gpt-6-luna", "my-own", "gpt-6-sol")]
    assert costs == [30, 30, 20]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, ["cannot be read", "name an existing file"]),
        ("date =", ["not TOML", "fix the line"]),
        (HEAD + ROW.format(model="m", band="input = 2.5"), ["openai/m", "bands.0.input", "$2.50 is 2_500_000"]),
        (HEAD + ROW.format(model="m", band="input = -1"), ["openai/m", "bands.0.input", "$2.50 is 2_500_000"]),
        (HEAD + ROW.format(model="m", band="inptu = 1, input = 1"), ["openai/m", "bands.0.inptu", "remove it"]),
        (HEAD + ROW.format(model="m", band="output = 1"), ["openai/m", "bands.0.input", "add it"]),
        (HEAD + ROW.format(model="m", band="input = 1 }, { input = 1"), ["openai/m", "only the last", "fix it"]),
        (HEAD.replace("USD", "EUR") + ROW.format(model="m", band="input = 1"), ["currency_code", "USD"]),
        (ROW.format(model="m", band="input = 1"), ["date", "add it"]),
    ],
)
def test_a_prices_file_that_is_wrong_is_refused_with_file_model_field_and_fix(
    prices_file: Path, text: str | None, said: list[str]
) -> None:
    if text is not None:
        prices_file.write_text(text)

    with pytest.raises(AgentShellError) as caught:
        Prices.load(prices_file)

    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert caught.value.metadata["key"] == "provider.prices_file"
    assert [word for word in [str(prices_file), *said] if word not in caught.value.message] == []
