"""What `manifest.yaml` may say, and the errors for what it may not."""

from __future__ import annotations

import contextlib
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.personality import manifest
from agentshell.personality.manifest import (
    Knowledge,
    Limits,
    Manifest,
    Planning,
    ProviderSettings,
    Source,
)
from agentshell.personality.yaml_file import PackError
from agentshell.tool.builtin.table import TOOLS

WHOLE = """\
id: scribe
version: 1.0.0
name: The scribe
description: Writes.
author: Somebody
created_date: 2025-05-10
provider_settings:
  default_provider: openai
  default_model: gpt-x
system_prompt:
  template_file: prompts/system.md
  variables:
    - name: tone
      default: dry
tools:
  enabled: false
knowledge:
  enabled: true
  sources:
    - type: directory
      path: knowledge
      loader: markdown
  index_strategy: hybrid
category: writing
tags: [prose, "2025"]
capabilities: [write]
plan:
  strategy: planned
limits:
  max_turn_seconds: 30
  max_steps: 5
  max_attempts: 2
  max_tokens: 100
  max_cost_usd: 0.5
"""


def refusal(text: str | bytes) -> str:
    with pytest.raises(PackError) as caught:
        manifest.parse(text.encode() if isinstance(text, str) else text)
    return str(caught.value)


def test_a_whole_manifest_is_read_as_it_is_written() -> None:
    read, _ = manifest.parse(WHOLE.encode())
    assert read == Manifest(
        id="scribe",
        version="1.0.0",
        name="The scribe",
        description="Writes.",
        author="Somebody",
        created_date=date(2025, 5, 10),
        provider_settings=ProviderSettings(default_provider="openai", default_model="gpt-x"),
        system_prompt=manifest.SystemPrompt(
            template_file="prompts/system.md", variables=(manifest.Variable(name="tone", default="dry"),)
        ),
        knowledge=Knowledge(sources=(Source(type="directory", path="knowledge", loader="markdown"),)),
        category="writing",
        tags=("prose", "2025"),
        capabilities=("write",),
        plan=Planning(strategy="planned"),
        limits=Limits(max_turn_seconds=30, max_steps=5, max_attempts=2, max_tokens=100, max_cost_usd=0.5),
    )


def test_a_personality_has_the_tools_that_its_manifest_exposes_and_none_while_they_are_off() -> None:
    exposed = WHOLE.replace("enabled: false", "enabled: true\n  exposed_tools: [clock, calculator]")
    off = exposed.replace("enabled: true\n  exp", "enabled: false\n  exp")
    assert [manifest.parse(text.encode())[0].tools.names for text in (exposed, off)] == [("clock", "calculator"), ()]


def test_the_tools_that_a_manifest_may_name_are_those_that_there_are() -> None:
    assert tuple(TOOLS) == manifest.BUILT_IN_TOOLS


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 1.0.0", "version: 1.0", "manifest.yaml:2: version: not a semantic version; write three numbers"),
        ("id: scribe", "id: a/b", "manifest.yaml:1: id: write 1 to 128 letters"),
        (
            "name: The scribe",
            "nmae: The scribe",
            "manifest.yaml:3: nmae: unknown key; remove it, or correct its spelling",
        ),
        ("name: The scribe\n", "", "manifest.yaml:1: name: missing; add it"),
        ("default: dry", "value: dry", "manifest.yaml:14: system_prompt.variables.0.value: unknown key"),
        ("      default: dry\n", "", "manifest.yaml:13: system_prompt.variables.0.default: missing; add it"),
        ("path: knowledge", "path: ../knowledge", "manifest.yaml:21: knowledge.sources.0.path: write a path within"),
        ("path: knowledge", "path: /etc/passwd", "manifest.yaml:21: knowledge.sources.0.path: write a path within"),
        ("loader: markdown", "loader: pdf", "manifest.yaml:22: knowledge.sources.0.loader: input should be 'auto'"),
        ("tags: [prose, ", "tags: [Prose, ", "manifest.yaml:25: tags.0: write 1 to 64 lower-case letters"),
        ("category: writing", "category: ''", "manifest.yaml:24: category: write 1 to 64 lower-case letters"),
        ("  strategy: planned", "  strategy: wild", "manifest.yaml:28: plan.strategy: input should be 'direct' or"),
        (
            "  strategy: planned",
            "  strategy: planned\n  steps: [{step_id: a}]",
            "manifest.yaml:27: plan: has a strategy and steps; keep one of the two",
        ),
        ("max_cost_usd: 0.5", "max_cost_usd: 0", "manifest.yaml:34: limits.max_cost_usd: input should be greater"),
        ("max_steps: 5", "max_steps: 0", "manifest.yaml:31: limits.max_steps: input should be greater than"),
        ("max_turn_seconds: 30", "max_turn_seconds: .inf", "manifest.yaml:30: limits.max_turn_seconds: "),
        ("max_turn_seconds: 30", "max_turn_seconds: nan", "manifest.yaml:30: limits.max_turn_seconds: "),
        ("enabled: false", "enabled: true", "manifest.yaml:15: tools: names no exposed_tools; name one, or set tools"),
        (
            "enabled: false",
            "enabled: true\n  module: tools/fetch.py",
            "manifest.yaml:17: tools.module: 'tools/fetch.py' is not needed: functions are found in all of tools/*.py",
        ),
        (
            "enabled: false",
            "enabled: true\n  exposed_tools: [clock, clock]",
            "manifest.yaml:17: tools.exposed_tools: a name appears twice; remove one",
        ),
        (
            "  default_model: gpt-x",
            "  model_parameters: {temperature: 1}",
            "manifest.yaml:7: provider_settings: model_",
        ),
        ("author: Somebody", "author: &a Somebody", "manifest.yaml:5: aliases and anchors are not supported"),
        (
            "author: Somebody",
            "author: !!python/name:os.system x",
            "manifest.yaml:5: tags such as `!!int` are not supported",
        ),
        ("author: Somebody", "id: other", "manifest.yaml:5: 'id' appears twice; remove one"),
        ("author: Somebody", "[a]: b", "manifest.yaml:5: a key must be a word"),
        ("author: Somebody", "author: [unclosed", "manifest.yaml:6: not YAML: "),
        ("author: Somebody", f"author: {'[' * 100}{']' * 100}", "manifest.yaml:5: nested deeper than 16 levels"),
        ("author: Somebody", "author: |\n  a\n---\nid: second", "manifest.yaml:"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_its_fix(old: str, new: str, expected: str) -> None:
    assert old in WHOLE
    assert refusal(WHOLE.replace(old, new)).startswith(expected)


def test_of_several_mistakes_the_unknown_key_is_named_first_and_the_rest_are_counted() -> None:
    text = WHOLE.replace("name: The scribe", "nmae: The scribe").replace("version: 1.0.0", "version: x")
    assert refusal(text) == "manifest.yaml:3: nmae: unknown key; remove it, or correct its spelling (and 2 more)"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "manifest.yaml:1: not a mapping; start with a line such as `id: ...`"),
        (b"- a\n- b\n", "manifest.yaml:1: not a mapping; start with a line such as `id: ...`"),
        (b"id: a\nname: \xff\n", "manifest.yaml:2: not UTF-8; save it as UTF-8"),
        (b"id: a\n\nname: \0\n", "manifest.yaml:3: has a NUL character; remove it"),
        (b"id: a\n---\nid: b\n", "manifest.yaml:1: more than one document; keep one"),
        (b"#" * 70_000, "manifest.yaml: larger than 65536 bytes; move long texts into files of the pack"),
        (b"- " * 30_000, "manifest.yaml:1: not a mapping; start with a line such as `id: ...`"),
        (b"a: " + b"{a: " * 10_000, "manifest.yaml:1: nested deeper than 16 levels; no key needs that"),
        (b"id: a\nname: \x07\n", "manifest.yaml: not YAML: it has a character that is not allowed; remove"),
    ],
)
def test_what_is_no_manifest_at_all_is_refused(content: bytes, expected: str) -> None:
    assert refusal(content).startswith(expected)


_lines = st.sampled_from(WHOLE.splitlines())
_scraps = st.sampled_from(
    ["", "- ", "  ", ": ", "{", "}", "[", "]", "&a ", "*a", "!!", "|", ">", "\t", "'", '"', "#", "---", "\u2028"]
)


@settings(max_examples=300)
@given(st.lists(_lines | _scraps | st.text(max_size=20), max_size=40).map("\n".join))
def test_any_text_is_a_manifest_or_a_pack_error(text: str) -> None:
    with contextlib.suppress(PackError):
        manifest.parse(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, len(WHOLE)))
def test_any_bytes_within_a_manifest_leave_a_manifest_or_a_pack_error(scrap: bytes, at: int) -> None:
    content = WHOLE.encode()
    with contextlib.suppress(PackError):
        manifest.parse(content[:at] + scrap + content[at:])
