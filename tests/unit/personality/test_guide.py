"""The guide's knowledge is the documentation: what it names must exist, and what exists must be named."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
from pydantic import BaseModel

from agentshell.mesh.config import Config
from agentshell.personality import loader
from kfm.error.v1.error_pb2 import ErrorReason

KNOWLEDGE = loader.shipped() / "guide" / "knowledge"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_configuration_key_is_documented_and_no_other() -> None:
    text = (KNOWLEDGE / "configuration.md").read_text()
    cells = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z_.]+)`", cells)) == set(keys(Config))


def test_every_reason_that_the_documentation_names_is_in_the_contract() -> None:
    text = "\n".join(path.read_text() for path in sorted(KNOWLEDGE.glob("*.md")))
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text))
    codes = {code.name for code in grpc.StatusCode}
    keys = {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"}
    others = {*keys, "AGENTSHELL_CONFIG", "AGENTSHELL_DATA_DIR", "FAIL_TURN"}
    assert {f"ERROR_REASON_{name}" for name in named - codes - others} <= set(ErrorReason.keys())
