"""Determines the limits of a turn. Pure."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import Final, Literal

from google.protobuf.duration_pb2 import Duration

from agentshell.mesh.config import RuntimeConfig
from kfm.content.v1.content_pb2 import Money
from kfm.turn.v1.turn_pb2 import TurnLimits

CURRENCY = "USD"

_Limit = Literal["max_duration", "max_steps", "max_attempts", "max_tokens", "max_cost"]
_OVERRIDABLE: Final[tuple[_Limit, ...]] = ("max_duration", "max_steps", "max_attempts")
_LEAST: Final[tuple[_Limit, ...]] = ("max_tokens", "max_cost")


def limits_of(asked: TurnLimits, pack: TurnLimits, config: RuntimeConfig, *, is_below: bool) -> TurnLimits:
    """Returns the limits of a turn.

    Time, steps and attempts are the caller's, else the pack's, else the default, up to the configured maximum. A turn
    that `is_below` another asks for what that one has left, and gets no more. Tokens and cost are the lowest of all.
    """
    given, most = _defaults(config), _most(config)
    for field, source in product(_OVERRIDABLE, (pack,) if is_below else (pack, asked)):
        if source.HasField(field):
            _copy(field, source, given)
    for field, bound in product(_OVERRIDABLE, (most, asked) if is_below else (most,)):
        _bound(field, bound, given)
    for field, bound in product(_LEAST, (most, pack, asked)):
        _bound(field, bound, given)
    return given


def _defaults(config: RuntimeConfig) -> TurnLimits:
    limits = TurnLimits(max_steps=config.default_steps, max_attempts=config.default_attempts)
    limits.max_duration.FromTimedelta(timedelta(seconds=config.default_turn_seconds))
    return limits


def _most(config: RuntimeConfig) -> TurnLimits:
    limits = TurnLimits(max_steps=config.max_steps, max_attempts=config.max_attempts, max_tokens=config.max_turn_tokens)
    limits.max_duration.FromTimedelta(timedelta(seconds=config.max_turn_seconds))
    if config.max_turn_cost_usd is not None:
        micros = max(1, round(config.max_turn_cost_usd * 1_000_000))
        limits.max_cost.CopyFrom(Money(currency_code=CURRENCY, amount_micros=micros))
    return limits


def _bound(field: _Limit, source: TurnLimits, target: TurnLimits) -> None:
    if source.HasField(field) and not (target.HasField(field) and _size(field, target) <= _size(field, source)):
        _copy(field, source, target)


def _copy(field: _Limit, source: TurnLimits, target: TurnLimits) -> None:
    target.ClearField(field)
    target.MergeFrom(TurnLimits(**{field: getattr(source, field)}))


def _size(field: _Limit, limits: TurnLimits) -> int:
    match getattr(limits, field):
        case Duration() as duration:
            return duration.ToNanoseconds()
        case Money() as money:
            return money.amount_micros
        case number:
            return number
