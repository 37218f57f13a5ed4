"""Prices answers by the price table (prices.toml, overridden by a configured file), with exact arithmetic.

A cost is None, never 0, if its model, its band or the price of a kind is unknown. Money is in micro-USD, rounded up
once, at the end, so that what cost something never counts as nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentshell.mesh.errors import AgentShellError
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

CURRENCY_CODE = "USD"
_TOKENS_PER_PRICE = 1_000_000
# Vendors answer with the name of a dated snapshot: `gpt-6.1-sol-2026-09-29`, `claude-haiku-4-5-20251001`.
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")
_FIXES = {
    "missing": "add it",
    "extra_forbidden": "remove it, or write it as in the table that ships with Agent Shell",
    "value_error": "fix it",
}
_FIX = "prices are whole micro-USD for a million tokens: $2.50 is 2_500_000"

_Price = Annotated[int, Field(ge=0, strict=True)] | None
_Tokens = Annotated[int, Field(ge=0, strict=True)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Band(_Entry):
    """Prices in micro-USD per million tokens, for requests with up to so many input tokens; absent: unknown.

    Two kinds without a price of their own are charged as others: images as input, reasoning as output.
    """

    up_to_input_tokens: int | None = None
    input: Annotated[int, Field(ge=0, strict=True)]
    cached_input: _Price = None
    cache_write: _Price = None
    long_cache_write: _Price = None
    image_input: _Price = None
    audio_input: _Price = None
    output: _Price = None
    reasoning: _Price = None
    audio_output: _Price = None

    def cost(self, usage: content_pb2.Usage) -> int | None:
        """Returns micro-USD; None: tokens of a kind without a price were used.

        No token is charged twice: if kinds overlap (a cached image), the one that is listed first below applies.
        """
        image = self.input if self.image_input is None else self.image_input
        reasoning = self.output if self.reasoning is None else self.reasoning
        kinds = (
            (usage.input_tokens, self.input, (
                (usage.cached_input_tokens, self.cached_input),
                (usage.long_cache_write_tokens, self.long_cache_write),
                (usage.cache_write_tokens - usage.long_cache_write_tokens, self.cache_write),
                (usage.audio_input_tokens, self.audio_input),
                (usage.image_input_tokens, image),
            )),
            (usage.output_tokens, self.output, (
                (usage.audio_output_tokens, self.audio_output),
                (usage.reasoning_tokens, reasoning),
            )),
        )  # fmt: skip
        total = 0
        for left, other_price, parts in kinds:
            for tokens, price in (*parts, (left, other_price)):
                paid = min(tokens, left)
                if paid and price is None:
                    return None
                total += paid * (price or 0)
                left -= paid
        return _rounded_up(total)

    def bound(self, input_tokens: int, output_tokens: int) -> int | None:
        """Returns the most that so many tokens cost, however they split into priced kinds; None: no output price."""
        if output_tokens and self.output is None:
            return None
        inputs = (
            self.input,
            self.cached_input,
            self.cache_write,
            self.long_cache_write,
            self.audio_input,
            self.image_input,
        )
        outputs = (self.output, self.audio_output, self.reasoning)
        dearest_input, dearest_output = (max(price or 0 for price in prices) for prices in (inputs, outputs))
        return _rounded_up(input_tokens * dearest_input + output_tokens * dearest_output)


class PricedModel(_Entry):
    """A row of the table. `until` is the last day, in UTC, on which its prices apply."""

    provider: str = Field(min_length=1)
    model: str = Field(min_length=1)
    description: str = ""
    max_context_tokens: _Tokens = 0
    max_output_tokens: _Tokens = 0
    until: date | None = None
    bands: tuple[Band, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_bands(self) -> Self:
        ends = [band.up_to_input_tokens for band in self.bands]
        known = [end for end in ends[:-1] if end is not None]
        if len(known) < len(ends) - 1 or any(a >= b for a, b in zip(known, ends[1:], strict=False) if b is not None):
            raise ValueError("up_to_input_tokens must grow from band to band, and only the last band may omit it")
        return self

    def band(self, input_tokens: int) -> Band | None:
        """Returns the band for a request that reads so many tokens."""
        fitting = (b for b in self.bands if b.up_to_input_tokens is None or input_tokens <= b.up_to_input_tokens)
        return next(fitting, None)


class PriceTable(_Entry):
    """A whole price file. `date` is when it was made."""

    date: date
    currency_code: Literal["USD"]
    models: tuple[PricedModel, ...]


class Prices:
    """All prices. `name` selects a provider's rows of the table: it is its vendor's name (Kind.prices)."""

    def __init__(self, tables: Iterable[PriceTable], today: Callable[[], date] | None = None) -> None:
        """An earlier table's rows for a model replace a later table's."""
        self._today = today or _today
        self._rows: dict[tuple[str, str], list[PricedModel]] = {}
        for table in tables:
            rows: dict[tuple[str, str], list[PricedModel]] = {}
            for row in table.models:
                rows.setdefault((row.provider, row.model), []).append(row)
            self._rows = rows | self._rows

    @classmethod
    def load(cls, prices_file: Path | None = None) -> Prices:
        """Returns the prices of the shipped table, overridden by those of a file. Raises CONFIG_INVALID."""
        shipped = resources.files("agentshell.provider").joinpath("prices.toml").read_text(encoding="utf-8")
        tables = [PriceTable.model_validate(tomllib.loads(shipped))]
        if prices_file is not None:
            tables.insert(0, _read(prices_file))
        return cls(tables)

    def find(self, name: str, model: str) -> PricedModel | None:
        """Returns a model's row by its name, or by its name without a snapshot date; None: unknown."""
        today = self._today()
        rows = self._rows.get((name, model)) or self._rows.get((name, _SNAPSHOT.sub("", model)), ())
        return next((row for row in rows if row.until is None or today <= row.until), None)

    def cost(self, name: str, model: str, usage: content_pb2.Usage) -> content_pb2.Money | None:
        """Returns what `usage` costs today; None: unknown."""
        row = self.find(name, model)
        band = row.band(usage.input_tokens) if row else None
        micros = band.cost(usage) if band else None
        return None if micros is None else content_pb2.Money(amount_micros=micros, currency_code=CURRENCY_CODE)

    def bound(self, name: str, model: str, input_tokens: int, output_tokens: int) -> int | None:
        """Returns an upper bound, in micro-USD, on the cost of a request of at most so many tokens; None: unknown.

        `cost` never returns more for a usage within these tokens. A request beyond the largest band is unknown too.
        """
        row = self.find(name, model)
        if row is None or row.band(input_tokens) is None:
            return None
        bounds: list[int] = []
        for band in row.bands:  # A smaller request may cost more: prices need not rise with the bands.
            end = band.up_to_input_tokens
            bound = band.bound(input_tokens if end is None else min(end, input_tokens), output_tokens)
            if bound is None:
                return None
            bounds.append(bound)
            if end is None or input_tokens <= end:
                break
        return max(bounds)

    def models(self, name: str, default_model: str) -> list[pb.Model]:
        """Returns the models that the table has for `name`, and the default if the table lacks it."""
        names = [model for row_name, model in self._rows if row_name == name]
        rows = [row for row in (self.find(name, model) for model in names) if row is not None]
        listed = [_describe(row, default_model) for row in rows]
        if default_model and not any(model.is_default for model in listed):
            listed.append(pb.Model(provider=name, model=default_model, is_default=True))
        return listed


def _today() -> date:
    return datetime.now(UTC).date()


def _rounded_up(price_tokens: int) -> int:
    return -(-price_tokens // _TOKENS_PER_PRICE)


def _describe(row: PricedModel, default_model: str) -> pb.Model:
    band = row.bands[0]
    return pb.Model(
        provider=row.provider,
        model=row.model,
        description=row.description,
        max_context_tokens=row.max_context_tokens,
        max_output_tokens=row.max_output_tokens,
        is_default=row.model == default_model,
        price=pb.Price(
            currency_code=CURRENCY_CODE,
            input_micros_per_million_tokens=band.input,
            output_micros_per_million_tokens=band.output or 0,
            cached_input_micros_per_million_tokens=band.input if band.cached_input is None else band.cached_input,
            cache_write_micros_per_million_tokens=band.cache_write,
            image_input_micros_per_million_tokens=band.image_input,
            audio_input_micros_per_million_tokens=band.audio_input,
            audio_output_micros_per_million_tokens=band.audio_output,
            reasoning_micros_per_million_tokens=band.reasoning,
        ),
    )


def _read(path: Path) -> PriceTable:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}", "name an existing file, or none") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(path, f"is not TOML: {error}", "fix the line it names") from None
    try:
        return PriceTable.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where, field = _place(values, first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        fix = _FIXES.get(first["type"], _FIX)
        raise _invalid(path, f"{where}, {field}: {problem}", fix, {"model": where, "field": field}) from None


def _place(values: dict[str, Any], location: tuple[int | str, ...]) -> tuple[str, str]:
    """Returns the model of the file that has a problem, named so that people can find it, and the field."""
    match location:
        case ("models", int(index), *rest):
            entry: Any = values["models"][index]
            named = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
            model = f"{named.get('provider', '?')}/{named.get('model', '?')}"
            return f"model {model} (number {index + 1} in the file)", ".".join(map(str, rest)) or "bands"
        case _:
            return "the table", ".".join(map(str, location))


def _invalid(path: Path, problem: str, fix: str, metadata: dict[str, str] | None = None) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"price file {path} (configuration key 'provider.prices_file'): {problem}; {fix}",
        metadata={"key": "provider.prices_file", "value": str(path), "fix": fix, **(metadata or {})},
    )
