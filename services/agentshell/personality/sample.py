"""A small working pack, which `agentshell packs new` writes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agentshell.personality import manifest_schema

_MANIFEST = """\
# yaml-language-server: $schema=../{schema}
id: {id}
version: 0.1.0
name: {id}
description: Answers questions from its own documents.
tags: [example]

system_prompt:
  template_file: prompts/system.md
  variables:
    - name: most_words
      default: "120"
      description: How long an answer may be.

knowledge:
  sources:
    - type: directory
      path: knowledge

# `local`, the provider that needs no key, calls no tools: enable them where another answers.
tools:
  enabled: false
  exposed_tools: [calculator, count_words]
"""
_PROMPT = """\
You are {id}. Answer from the passages that you are given, in at most {{{{ most_words }}}} words, and cite them.
When they do not answer the question, say so.
"""
_KNOWLEDGE = """\
# About {id}

## What is {id}?

{id} is a personality pack: a folder with a manifest, a prompt, documents and tools.

## How do I change it?

Edit its files while the shell runs: a change is loaded within a second.
"""
_TOOL = '''\
"""Tools of the pack: they run in a sandbox. `import host` for what they may ask of the host."""

from typing import Annotated


def count_words(text: Annotated[str, "What to count the words of."]) -> int:
    """Counts the words of a text."""
    return len(text.split())
'''
_CASES = """\
# What it must answer: `agentshell packs test` asks it.
cases:
  - name: knows what it is
    input: What is {id}?
    contains: [personality pack]
    not_contains: [I am sorry]
"""


def files(personality_id: str) -> Mapping[str, str]:
    """Returns the files of a new pack, by path."""
    templates = {
        "manifest.yaml": _MANIFEST,
        "prompts/system.md": _PROMPT,
        "knowledge/about.md": _KNOWLEDGE,
        "tests/cases.yaml": _CASES,
    }
    written = {path: text.format(id=personality_id, schema=manifest_schema.FILE) for path, text in templates.items()}
    return {**written, "tools/words.py": _TOOL}
