"""The adapters: one file a vendor, and the table that says which there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentshell.mesh.config import ProviderConfig
from agentshell.provider.adapters.adapter import Adapter
from agentshell.provider.adapters.anthropic import AnthropicAdapter
from agentshell.provider.adapters.local import LocalAdapter
from agentshell.provider.adapters.openai import OpenAIAdapter

_Build = Callable[[ProviderConfig, Mapping[str, str]], Adapter]

_ADAPTERS: tuple[_Build, ...] = (
    lambda config, environment: LocalAdapter(),
    lambda config, environment: OpenAIAdapter(config.openai, environment),
    lambda config, environment: AnthropicAdapter(config.anthropic, environment),
)


def build(config: ProviderConfig, environment: Mapping[str, str]) -> dict[str, Adapter]:
    """Returns every adapter by its provider's name. `environment` has the keys and is read at each call."""
    adapters = [make(config, environment) for make in _ADAPTERS]
    return {adapter.name: adapter for adapter in adapters}
