"""A pack, read from its files."""

from __future__ import annotations

import contextlib
import json
from hashlib import sha256

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentshell.personality import pack
from agentshell.personality.pack import Document
from agentshell.personality.yaml_file import PackError

MANIFEST = b"""\
id: scribe
version: 1.0.0
name: The scribe
description: Writes.
system_prompt:
  template_file: prompts/system.md
  variables:
    - name: tone
      default: dry
knowledge:
  sources:
    - {type: directory, path: knowledge}
    - {type: file, path: LICENSE, loader: text}
"""
FILES = {
    "manifest.yaml": MANIFEST,
    "prompts/system.md": b"Be {{ tone }}.\n",
    "knowledge/b/deep.txt": b"deep",
    "knowledge/a.md": b"# A",
    "knowledge.md": b"not in the directory",
    "LICENSE": b"MIT",
}


def refusal(changes: dict[str, bytes | None]) -> str:
    files = {path: content for path, content in {**FILES, **changes}.items() if content is not None}
    with pytest.raises(PackError) as caught:
        pack.parse(files)
    return str(caught.value)


def test_a_pack_has_its_prompt_rendered_and_its_documents_by_path() -> None:
    read = pack.parse(FILES)
    assert read.personality_id == "scribe"
    assert read.system_prompt == "Be dry."
    assert read.documents == (
        Document("LICENSE", "text/plain", b"MIT"),
        Document("knowledge/a.md", "text/markdown", b"# A"),
        Document("knowledge/b/deep.txt", "text/plain", b"deep"),
    )


def test_knowledge_that_is_not_enabled_brings_no_documents() -> None:
    read = pack.parse({**FILES, "manifest.yaml": MANIFEST.replace(b"knowledge:\n", b"knowledge:\n  enabled: false\n")})
    assert (read.documents, read.knowledge_digest) == ((), "")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"manifest.yaml": None}, "manifest.yaml: no such file; every folder of a packs directory needs one"),
        ({"prompts/system.md": None}, "manifest.yaml:6: system_prompt.template_file: the pack has no prompts/system"),
        ({"prompts/system.md": b"\n {# empty #} \n"}, "prompts/system.md: renders to nothing; say who"),
        ({"prompts/system.md": b"a\nb {{ nobody }}"}, "prompts/system.md:2: 'nobody' is undefined; give it a default"),
        ({"prompts/system.md": b"a\n\n{% if %}"}, "prompts/system.md:3: not a Jinja2 template: "),
        ({"prompts/system.md": b"a\n{{ 1 / 0 }}"}, "prompts/system.md:2: does not render: division by zero; fix"),
        ({"prompts/system.md": b"a\n{% include 'b' %}"}, "prompts/system.md:2: does not render: no loader"),
        (
            {"prompts/system.md": b"{{ tone.__class__.__mro__ }}"},
            "prompts/system.md:1: does not render: access to attribute",
        ),
        ({"prompts/system.md": b"{{ '\\ud800' }}"}, "prompts/system.md:"),
        ({"prompts/system.md": b"{% for i in range(99999) %}x{% endfor %}"}, "prompts/system.md: renders to more than"),
        ({"prompts/system.md": b"a\n\xff"}, "prompts/system.md:2: not UTF-8; save it as UTF-8"),
        ({"knowledge/a.md": b"a\nb\n\xff"}, "knowledge/a.md:3: not UTF-8; save it as UTF-8"),
        ({"knowledge/a.pdf": b"%PDF"}, "knowledge/a.pdf: knowledge must be .md or .txt; rename or remove it"),
        ({"LICENSE": None}, "manifest.yaml:13: knowledge.sources.1.path: the pack has no file 'LICENSE'"),
        (
            {"knowledge/a.md": None, "knowledge/b/deep.txt": None},
            "manifest.yaml:12: knowledge.sources.0.path: the pack has no directory 'knowledge' with anything in it",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_line(changes: dict[str, bytes | None], expected: str) -> None:
    assert refusal(changes).startswith(expected)


def test_the_digest_is_that_of_paths_lengths_and_contents_in_order() -> None:
    expected = sha256(b"a\0001\0001b\0001\0002").hexdigest()
    assert pack.digest({"b": b"2", "a": b"1"}) == f"sha256:{expected}"


_files = st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1), st.binary())


@settings(max_examples=100)
@given(_files, _files)
def test_two_sets_of_files_have_one_digest_only_if_they_are_the_same(
    one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    assert (pack.digest(one) == pack.digest(other)) == (one == other)
    assert pack.digest(dict(reversed(one.items()))) == pack.digest(one)


_names = st.sampled_from(["tone", "x", "self", "true", "loop", "not", "range"])
_pieces = st.sampled_from(["{{", "}}", "{%", "%}", "{#", "#}", "{{-", "{", " ", "\n", "\r\n", "\r", "a", "#"]) | _names


@settings(max_examples=300)
@given(
    st.lists(_pieces | _names.map("{{{{ {} }}}}".format) | st.just("{{tone}}"), max_size=12).map("".join),
    st.dictionaries(_names, st.text("ab {}%#\n", max_size=5), min_size=1),
)
@example("{{{ tone }}", {"tone": ""})  # Jinja2 takes the first two braces, not the last.
def test_a_template_renders_to_what_jinja_makes_of_it(source: str, variables: dict[str, str]) -> None:
    try:
        rendered = (
            ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(source).render(variables).strip()
        )
    except Exception:
        rendered = ""
    if "TemplateReference" in rendered:  # Its text has a memory address.
        return
    declared = [{"name": name, "default": value} for name, value in variables.items()]
    prompt_section = {"template_file": "p.md", "variables": declared}
    manifest = {"id": "a", "version": "1.0.0", "name": "N", "description": "D", "system_prompt": prompt_section}
    try:
        prompt = pack.parse({"manifest.yaml": json.dumps(manifest).encode(), "p.md": source.encode()}).system_prompt
    except PackError:
        prompt = ""
    assert prompt == rendered


@settings(max_examples=200)
@given(st.text(max_size=60), st.sampled_from(["{{ %s }}", "{%% %s %%}", "{%% for x in %s %%}{%% endfor %%}", "%s"]))
def test_any_template_renders_or_is_a_pack_error(text: str, around: str) -> None:
    with contextlib.suppress(PackError):
        pack.parse({**FILES, "prompts/system.md": (around % text).encode("utf-8", "surrogatepass")})
