"""The table of adapters, and those from other packages."""

from __future__ import annotations

from importlib import metadata

import pytest

from agentshell.mesh.errors import AgentShellError
from agentshell.provider import adapters
from agentshell.provider.adapters.adapter import Kind
from agentshell.provider.adapters.local import LocalAdapter
from kfm.error.v1 import error_pb2

THEIRS = Kind(LocalAdapter, "THEIR_KEY")


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs another package's two entry points: one for an adapter, one for something else."""
    points = metadata.EntryPoints(
        metadata.EntryPoint(name, f"{__name__}:{value}", adapters.ENTRY_POINTS)
        for name, value in (("theirs", "THEIRS"), ("odd", "__doc__"))
    )

    def entry_points(*, group: str) -> metadata.EntryPoints:
        return points.select(group=group)

    monkeypatch.setattr(metadata, "entry_points", entry_points)


def test_another_package_brings_an_adapter_by_an_entry_point() -> None:
    assert adapters.kind("theirs").key_variable == "THEIR_KEY"
    assert adapters.kind("anthropic") is adapters.KINDS["anthropic"]


@pytest.mark.parametrize(("name", "problem"), [("odd", "does not name an adapter's Kind"), ("none", "does not exist")])
def test_what_is_no_adapter_is_refused_with_those_that_there_are(name: str, problem: str) -> None:
    with pytest.raises(AgentShellError) as caught:
        adapters.kind(name)
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert problem in caught.value.message
    assert "anthropic, gemini, local, odd, openai, openai_chat, openai_compatible, theirs" in caught.value.message
