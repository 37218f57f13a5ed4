"""Where a request is routed: to its provider, by the nearest alias, or by a model's full name."""

from __future__ import annotations

import pytest

from agentshell.mesh.config import ProviderConfig
from agentshell.provider.routing import Candidate, aliases_of, candidates

CONFIG = ProviderConfig.model_validate(
    {
        "default": "anthropic",
        "aliases": {
            "smart": ["anthropic/claude", "openai/gpt", "anthropic/claude"],
            "fast": ["openai/mini"],
            "none": [],
            "a/b": ["openai/gpt"],
        },
        "tenant_aliases": {"acme": {"smart": ["openai/gpt"], "own": ["vllm/meta/llama"]}},
        "personality_aliases": {"guide": {"smart": ["local/extract"]}},
    }
)


@pytest.mark.parametrize(
    ("tenant", "personality", "provider", "model", "expected"),
    [
        ("x", "y", "", "smart", ["anthropic/claude", "openai/gpt"]),
        ("acme", "y", "", "smart", ["openai/gpt"]),
        ("acme", "guide", "", "smart", ["local/extract"]),
        ("acme", "guide", "", "fast", ["openai/mini"]),
        ("acme", "guide", "", "own", ["vllm/meta/llama"]),
        ("x", "y", "", "a/b", ["openai/gpt"]),
        ("x", "y", "", "own", ["anthropic/own"]),
        ("x", "y", "", "vllm/meta/llama", ["vllm/meta/llama"]),
        ("x", "y", "openai", "smart", ["openai/smart"]),
        ("x", "y", "openai", "meta/llama", ["openai/meta/llama"]),
        ("x", "y", "openai", "", ["openai/"]),
        ("x", "y", "", "", ["anthropic/"]),
    ],
)
def test_the_nearest_alias_leads_unless_the_request_names_its_provider(
    tenant: str, personality: str, provider: str, model: str, expected: list[str]
) -> None:
    found = candidates(CONFIG, tenant, personality, provider, model)

    assert found == tuple(Candidate(*name.split("/", 1)) for name in expected)


@pytest.mark.parametrize("model", ["none", "/gpt", "openai/"])
def test_what_leads_nowhere_is_named(model: str) -> None:
    with pytest.raises(ValueError, match=repr(model)):
        candidates(CONFIG, "acme", "", "", model)


def test_a_tenant_sees_the_aliases_that_lead_to_a_model_for_it() -> None:
    assert aliases_of(CONFIG, "acme", "openai", "gpt") == ["a/b", "smart"]
    assert aliases_of(CONFIG, "other", "openai", "gpt") == ["a/b", "smart"]
    assert aliases_of(CONFIG, "acme", "anthropic", "claude") == []
    assert aliases_of(CONFIG, "other", "anthropic", "claude") == ["smart"]
    assert aliases_of(CONFIG, "acme", "vllm", "meta/llama") == ["own"]
