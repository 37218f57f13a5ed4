"""The published JSON Schema of `manifest.yaml`: what it is made from, and what it accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema_rs import Draft202012Validator
from tests.unit.personality.test_manifest import WHOLE

from agentshell.personality import loader, manifest_schema

PLAN = """\
plan:
  steps:
    - {step_id: look, memory: {limit: 3}, timeout: 5s}
    - {step_id: sum, tool: {name: calculator, arguments: {expression: 1+1, deep: [1, true, null]}}, depends_on: [look]}
    - {step_id: say, model: {no_tools: true}, depends_on: [sum], on_failure: ON_FAILURE_CONTINUE}
"""
PLANNED = WHOLE.replace("plan:\n  strategy: planned\n", PLAN)


def problems(text: str) -> list[str]:
    validator = Draft202012Validator(json.loads(manifest_schema.text()), validate_formats=True)
    value: Any = json.loads(json.dumps(yaml.safe_load(text), default=str))
    return [error.message for error in validator.iter_errors(value)]


def test_the_published_schema_is_what_the_models_make() -> None:
    published = loader.shipped() / manifest_schema.FILE
    assert published.read_text() == manifest_schema.text(), "make gen"


@pytest.mark.parametrize(
    "manifest", sorted(loader.shipped().glob("*/manifest.yaml")), ids=lambda path: path.parent.name
)
def test_a_pack_that_ships_names_the_schema_and_keeps_it(manifest: Path) -> None:
    assert manifest.read_text().startswith(f"# yaml-language-server: $schema=../{manifest_schema.FILE}\n")
    assert problems(manifest.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", []),
        ("version: 1.0.0", "version: x", ['"x" does not match']),
        ("author:", "auhtor:", ["Additional properties are not allowed ('auhtor' was unexpected)"]),
        ("limit: 3", "limits: 3", ["Additional properties are not allowed ('limits' was unexpected)"]),
        ("ON_FAILURE_CONTINUE", "CONTINUE", ['"CONTINUE" is not one of']),
        ("timeout: 5s", "timeout: 5", ['5 is not of type "string"']),
        ("depends_on: [look]", "state: 1", ["Additional properties are not allowed ('state' was unexpected)"]),
    ],
)
def test_the_schema_says_what_a_manifest_may_not(old: str, new: str, expected: list[str]) -> None:
    found = problems(PLANNED.replace(old, new))
    assert [problem[: len(start)] for problem, start in zip(found, expected, strict=True)] == expected
