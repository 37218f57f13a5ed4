"""Fuzzes the readers of strangers' data, guided by coverage: `python -m tests.fuzz -max_total_time=60`.

It needs `pip install atheris`, and takes libFuzzer's options. Any input is read, or refused with one kind of error.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from contextlib import suppress
from typing import Any

fuzzer: Any = importlib.import_module("atheris")  # In no extra: it is large, and only for fuzzing.

with fuzzer.instrument_imports(include=["agentshell"]):
    from agentshell.mesh.config import ToolConfig
    from agentshell.mesh.errors import AgentShellError
    from agentshell.personality import pack
    from agentshell.personality.yaml_file import PackError
    from agentshell.tool.egress import Egress
    from agentshell.tool.grant import Grant
    from agentshell.tool.sandbox import frame, outcome
    from agentshell.tool.sandbox.ability import Abilities
    from agentshell.tool.sandbox.frame import FrameError
    from agentshell.tool.sandbox.limits import Budget

_HEAD = b"id: a\nversion: 1.0.0\nname: N\ndescription: D\nsystem_prompt: {template_file: p.md}\n"


def manifest(data: bytes) -> None:
    """A pack is read or refused."""
    for content in (data, _HEAD + data):
        try:
            pack.parse({"manifest.yaml": content, "p.md": b"Help."})
        except PackError:
            continue


def answer(data: bytes) -> None:
    """A worker's answer is an output or a typed error."""
    try:
        outcome.read("tool", frame.decode(data))
    except (FrameError, AgentShellError):
        return


def host_call(data: bytes) -> None:
    """A tool's host call reaches no site, because its pack declares a host that the operator does not allow."""
    name, _, arguments = data.decode("utf-8", "replace").partition("\n")
    egress = Egress(ToolConfig(http_hosts=("example.org",)), {})
    grant = Grant(egress.config, "acme", "p", "tool", ("example.com",))
    with suppress(AgentShellError):
        asyncio.run(Abilities(grant, Budget("tool", 1, 1000), egress, lambda _said: None).answer(name, arguments))
    assert egress.web._client is None, "it went somewhere"  # pyright: ignore[reportPrivateUsage] - the only sign


_TARGETS = (manifest, answer, host_call)


def one(data: bytes) -> None:
    """Feeds one target: the first byte selects it."""
    if data:
        _TARGETS[data[0] % len(_TARGETS)](data[1:])


if __name__ == "__main__":
    fuzzer.Setup(sys.argv, one)
    fuzzer.Fuzz()
