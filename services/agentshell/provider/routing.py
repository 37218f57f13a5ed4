"""Resolves a request to the models to ask, in order. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agentshell.mesh.config import ProviderConfig

_Routes = Mapping[str, tuple[str, ...]]
_NO_ROUTES: _Routes = {}


class Candidate(NamedTuple):
    """A provider and its name for a model; an empty model is the provider's default."""

    provider: str
    model: str


def candidates(
    config: ProviderConfig, tenant_id: str, personality_id: str, provider: str, model: str
) -> tuple[Candidate, ...]:
    """Returns whom to ask for a request's `provider` and `model`: at least one candidate, without duplicates.

    A request that names its provider means that one. Otherwise `model` is an alias (the personality's, or else the
    tenant's, or else everybody's), or `provider/model`, or a model of the default provider. Raises ValueError, with
    advice, if it is none of these. Does not check that the provider exists.
    """
    if provider:
        return (Candidate(provider, model),)
    if not model:
        return (Candidate(config.default, ""),)
    for routes in _routes(config, tenant_id, personality_id):
        if model in routes:
            return _follow(model, routes[model])
    if "/" not in model:
        return (Candidate(config.default, model),)
    return (_parse(model),)


def aliases_of(config: ProviderConfig, tenant_id: str, provider: str, model: str) -> list[str]:
    """Returns the aliases, the tenant's and everybody's, that lead a tenant to a model, sorted."""
    own = config.tenant_aliases.get(tenant_id, _NO_ROUTES)
    name = f"{provider}/{model}"
    return sorted(alias for alias, route in {**config.aliases, **own}.items() if name in route)


def _routes(config: ProviderConfig, tenant_id: str, personality_id: str) -> tuple[_Routes, _Routes, _Routes]:
    return (
        config.personality_aliases.get(personality_id, _NO_ROUTES),
        config.tenant_aliases.get(tenant_id, _NO_ROUTES),
        config.aliases,
    )


def _follow(alias: str, route: tuple[str, ...]) -> tuple[Candidate, ...]:
    if not route:
        raise ValueError(f"the alias {alias!r} has no model: give it one in the configuration, or name a model")
    return tuple(dict.fromkeys(map(_parse, route)))


def _parse(name: str) -> Candidate:
    provider, _, model = name.partition("/")  # A model's name may contain slashes.
    if not provider or not model:
        raise ValueError(
            f"{name!r} is neither an alias nor a model: write `provider/model`, or name the provider separately"
        )
    return Candidate(provider, model)
