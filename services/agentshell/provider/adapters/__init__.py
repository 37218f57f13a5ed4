"""The adapters: one file a vendor, and the table that says which there are."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.adapters.adapter import Kind
from agentshell.provider.adapters.anthropic import AnthropicAdapter
from agentshell.provider.adapters.gemini import GeminiAdapter
from agentshell.provider.adapters.local import LocalAdapter
from agentshell.provider.adapters.openai import OpenAIAdapter
from agentshell.provider.adapters.openai_chat import OpenAIChatAdapter
from agentshell.provider.adapters.openai_compatible import OpenAICompatibleAdapter
from kfm.error.v1 import error_pb2

ENTRY_POINTS = "agentshell.providers"

KINDS: Mapping[str, Kind] = {
    "local": Kind(LocalAdapter, prices="local"),
    "openai": Kind(OpenAIAdapter, "OPENAI_API_KEY", "openai"),
    "openai_chat": Kind(OpenAIChatAdapter, "OPENAI_API_KEY", "openai"),
    "openai_compatible": Kind(OpenAICompatibleAdapter),
    "anthropic": Kind(AnthropicAdapter, "ANTHROPIC_API_KEY", "anthropic"),
    "gemini": Kind(GeminiAdapter, "GEMINI_API_KEY", "gemini"),
}


def kind(name: str) -> Kind:
    """Returns an adapter's row of the table, or what another package's entry point of that name has.

    Raises CONFIG_INVALID where there is neither, or where the entry point is of something else.
    """
    if found := KINDS.get(name):
        return found
    named = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    loaded: object = named[name].load() if name in named else None
    if isinstance(loaded, Kind):
        return loaded
    known = ", ".join(sorted({*KINDS, *named}))
    problem = "is not of an adapter's Kind" if loaded else "is not there"
    raise AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"the adapter {name!r} {problem}; there are: {known}",
        metadata={"key": "provider.vendors.*.adapter", "value": name, "fix": f"name one of: {known}"},
    )
