"""The mocked model as a vendor that a mesh calls: `peers/model.py` in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from benchmarks.peer import Peer
from kfm.turn.v1.turn_pb2 import ModelChoice

PROVIDER = "openai"


def run() -> AbstractAsyncContextManager[Peer]:
    """Runs the model; its word is its base URL."""
    return Peer.run("model")


def environment(vendor: Peer) -> Mapping[str, str]:
    """Returns the variables that make a mesh call the model."""
    return {
        "AGENTSHELL_PROVIDER__VENDORS__OPENAI__ADAPTER": "openai_chat",  # Its API.
        "AGENTSHELL_PROVIDER__VENDORS__OPENAI__BASE_URL": vendor.word,
        "OPENAI_API_KEY": "none",
    }


def ticks(count: int, milliseconds: int) -> ModelChoice:
    """Returns the model that sends `count` texts, `milliseconds` apart, each the time at which it is sent."""
    return ModelChoice(provider=PROVIDER, model=f"ticks-{count}-{milliseconds}")


def tool(name: str) -> ModelChoice:
    """Returns the model that asks for a tool, with the user's message as its arguments, and then answers."""
    return ModelChoice(provider=PROVIDER, model=f"tool-{name}")
