"""The adapters, one file per vendor, and the table that lists them."""

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
    """Returns an adapter's row of the table, or the Kind that another package has an entry point for.

    Raises CONFIG_INVALID if there is neither, or if the entry point is not of a Kind.
    """
    if found := KINDS.get(name):
        return found
    named = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    loaded: object = named[name].load() if name in named else None
    if isinstance(loaded, Kind):
        return loaded
    known = ", ".join(sorted({*KINDS, *named}))
    problem = "does not name an adapter's Kind" if loaded else "does not exist"
    raise AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"the adapter {name!r} {problem}; the known adapters are: {known}",
        metadata={"key": "provider.vendors.*.adapter", "value": name, "fix": f"name one of: {known}"},
    )
