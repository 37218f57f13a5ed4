"""What answers cost: the price table (prices.toml) and exact arithmetic over it. Pure."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

_TOKENS_PER_PRICE = 1_000_000
# Vendors answer with the name of a dated snapshot: `gpt-6.1-sol-2026-09-29`, `claude-haiku-4-5-20251001`.
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Band(_Entry):
    """Micros of the currency for a million tokens, of requests that read up to so many tokens."""

    up_to_input_tokens: int | None = None
    input: int
    output: int
    cached_input: int | None = None
    cache_write: int | None = None


class PricedModel(_Entry):
    """A model of the table."""

    provider: str
    model: str
    description: str
    context_tokens: int = 0
    bands: tuple[Band, ...] = Field(min_length=1)


class PriceTable(_Entry):
    """The whole table."""

    date: Any
    currency_code: str
    models: tuple[PricedModel, ...]


@cache
def table() -> PriceTable:
    """Returns the table that ships with this package."""
    text = resources.files("agentshell.provider").joinpath("prices.toml").read_text(encoding="utf-8")
    return PriceTable.model_validate(tomllib.loads(text))


def find(provider: str, model: str) -> PricedModel | None:
    """Returns the table's entry for a model by its name, or by its name without a snapshot's date; None: unknown."""
    entries = _by_name()
    return entries.get((provider, model)) or entries.get((provider, _SNAPSHOT.sub("", model)))


def cost(provider: str, model: str, usage: content_pb2.Usage, cache_write_tokens: int = 0) -> content_pb2.Money | None:
    """Returns what `usage` cost, rounded up to a millionth of the currency; None: unknown.

    `cache_write_tokens`: of the input tokens, those that the vendor wrote to its cache at a price of their own.
    Reasoning tokens are output tokens and are paid as such.
    """
    entry = find(provider, model)
    band = _band(entry, usage.input_tokens) if entry else None
    if band is None:
        return None
    fresh_tokens = max(0, usage.input_tokens - usage.cached_input_tokens - cache_write_tokens)
    total = 0
    for tokens, price in (
        (fresh_tokens, band.input),
        (usage.cached_input_tokens, band.cached_input),
        (cache_write_tokens, band.cache_write),
        (usage.output_tokens, band.output),
    ):
        if tokens and price is None:
            return None
        total += tokens * (price or 0)
    # Up and not to the nearest: what cost something never counts as nothing.
    return content_pb2.Money(amount_micros=-(-total // _TOKENS_PER_PRICE), currency_code=table().currency_code)


def models(provider: str, default_model: str) -> list[pb.Model]:
    """Returns the table's models of a provider, and its default where the table does not have it."""
    listed = [_describe(entry, default_model) for entry in table().models if entry.provider == provider]
    if not any(model.is_default for model in listed):
        listed.append(pb.Model(provider=provider, model=default_model, is_default=True))
    return listed


@cache
def _by_name() -> dict[tuple[str, str], PricedModel]:
    return {(entry.provider, entry.model): entry for entry in table().models}


def _band(entry: PricedModel, input_tokens: int) -> Band | None:
    fitting = (b for b in entry.bands if b.up_to_input_tokens is None or input_tokens <= b.up_to_input_tokens)
    return next(fitting, None)


def _describe(entry: PricedModel, default_model: str) -> pb.Model:
    band = entry.bands[0]
    return pb.Model(
        provider=entry.provider,
        model=entry.model,
        description=entry.description,
        context_tokens=entry.context_tokens,
        is_default=entry.model == default_model,
        price=pb.Price(
            currency_code=table().currency_code,
            input_micros_per_million_tokens=band.input,
            output_micros_per_million_tokens=band.output,
            cached_input_micros_per_million_tokens=band.input if band.cached_input is None else band.cached_input,
        ),
    )
