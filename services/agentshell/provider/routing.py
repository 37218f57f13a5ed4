"""Which models a request leads to, in the order in which they are asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agentshell.mesh.config import ProviderConfig

_Routes = Mapping[str, tuple[str, ...]]
_NO_ROUTES: _Routes = {}


class Candidate(NamedTuple):
    """A provider and its name of a model; an empty model is the provider's default."""

    provider: str
    model: str


def candidates(
    config: ProviderConfig, tenant_id: str, personality_id: str, provider: str, model: str
) -> tuple[Candidate, ...]:
    """Returns whom to ask for `provider` and `model` as a request has them; at least one, each once.

    A request that names its provider means that one. Else `model` is an alias (the personality's before the tenant's
    before everybody's), or `provider/model`, or a model of the default provider. Raises ValueError, with what to do,
    where it is neither; whether there is such a provider is not looked at.
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
    """Returns the aliases that lead to a model for a tenant whatever the personality, sorted."""
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
        raise ValueError(f"the alias {alias!r} leads to no model: give it one in the configuration, or name a model")
    return tuple(dict.fromkeys(map(_parse, route)))


def _parse(name: str) -> Candidate:
    provider, _, model = name.partition("/")  # Models may have slashes of their own.
    if not provider or not model:
        raise ValueError(f"{name!r} is no alias and no model: write `provider/model`, or name the provider apart")
    return Candidate(provider, model)
