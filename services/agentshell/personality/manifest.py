"""The manifest of a pack: what `manifest.yaml` may say, and the line where it says something else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

FILE = "manifest.yaml"
MAX_MANIFEST_BYTES = 64 * 1024
# What `agentshell.tool` has, which this may not import; a test keeps the two the same.
BUILT_IN_TOOLS = ("calculator", "clock", "memory_search", "memory_write")
_MAX_DEPTH = 16
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# https://semver.org, without the parts that only its own grammar needs.
_SEMANTIC = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", re.ASCII)
_DEFAULT_TAGS = (None, "!")
# libyaml is twenty times as fast and never recurses; base loaders give every scalar as its text, and `1.0` stays `1.0`.
_LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader

_Path = tuple[str | int, ...]


class PackError(ValueError):
    """A pack is malformed: in `file` of the pack, at `line` (from 1; 0: the file as a whole)."""

    def __init__(self, file: str, line: int, problem: str) -> None:
        super().__init__(f"{file}:{line}: {problem}" if line else f"{file}: {problem}")
        self.file = file
        self.line = line


class Lines(dict[_Path, int]):
    """Where the keys of a manifest are: the line, from 1, of each path such as `("knowledge", "sources", 0)`."""

    def find(self, *path: str | int) -> int:
        """Returns the line of a key, or of the nearest key around it."""
        while path and path not in self:
            path = path[:-1]
        return self.get(path, 1)


def _identifier(text: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError("write 1 to 128 letters, digits, '.', '_' and '-', a letter or digit first")
    return text


def _semantic(text: str) -> str:
    if not _SEMANTIC.fullmatch(text):
        raise ValueError("not a semantic version; write three numbers, such as 1.0.0")
    return text


def _variable_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("write a name such as audience: letters, digits and '_', no digit first")
    return text


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    if not text or "\\" in text or "\0" in text or path.is_absolute() or ".." in path.parts:
        raise ValueError("write a path within the pack, relative, with '/' and without '..'")
    return str(path)


_InnerPath = Annotated[str, AfterValidator(_inside)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ProviderSettings(_Section):
    """The model that the personality wants; a turn may name another."""

    default_provider: str = Field(default="", max_length=64)
    """Such as `local`, `openai` or `anthropic`; empty: the configuration's."""
    default_model: str = Field(default="", max_length=128)
    """The provider's name of the model; empty: the provider's default."""
    model_parameters: dict[str, str] = {}
    """Reserved: must be empty in this release."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model_parameters:
            raise ValueError("model_parameters are not in this release; remove them")
        return self


class Variable(_Section):
    """A variable of the prompt's template."""

    name: Annotated[str, AfterValidator(_variable_name)]
    """As the template has it."""
    default: str
    """Its value."""
    description: str = ""
    """What it is for, for people."""


class SystemPrompt(_Section):
    """What the model is told first."""

    template_file: _InnerPath
    """A Jinja2 template of the pack, such as `prompts/system.md`."""
    variables: tuple[Variable, ...] = ()
    """What the template may name, and nothing else."""


class Tools(_Section):
    """The tools that the model may ask for: built-in ones, and functions of the pack's `tools/*.py`."""

    enabled: bool = False
    """Whether they are used."""
    module: str = ""
    """Must be empty where tools are enabled: functions are found in any of `tools/*.py`."""
    exposed_tools: tuple[str, ...] = ()
    """Their names."""
    tier: Literal["wasm", "native"] = "wasm"
    """The sandbox of the pack's own: native is for extensions in C, and an operator must allow it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tools that the personality has."""
        return self.exposed_tools if self.enabled else ()

    @field_validator("module")
    @classmethod
    def _check_module(cls, module: str, info: ValidationInfo) -> str:
        if module and info.data.get("enabled"):
            raise ValueError(f"{module!r} is not needed: functions are found in any of tools/*.py; remove it")
        return module

    @field_validator("exposed_tools")
    @classmethod
    def _check_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not info.data.get("enabled"):
            return names
        if len(set(names)) < len(names):
            raise ValueError("a name is there twice; remove one")
        return names

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.enabled and not self.exposed_tools:
            raise ValueError("names no exposed_tools; name one, or set tools.enabled to false")
        return self


class Abilities(_Section):
    """What the pack's own tools may ask of the host. An operator allows it, or not."""

    http_hosts: tuple[Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:[0-9]+)?$")], ...] = ()
    """Hosts that they call: `host`, or `host:port`."""


class Source(_Section):
    """A file or a directory of knowledge."""

    type: Literal["file", "directory"]
    """What `path` is."""
    path: _InnerPath
    """Where it is in the pack, such as `knowledge`."""
    loader: Literal["auto", "markdown", "text"] = "auto"
    """How to read it; auto: `.md` is Markdown, `.txt` is text, and nothing else is taken."""


class Knowledge(_Section):
    """The documents that the personality answers from."""

    enabled: bool = True
    """Whether they are used."""
    sources: tuple[Source, ...] = ()
    """Where they are."""
    index_strategy: Literal["hybrid"] = "hybrid"
    """How they are found: by vector and by words."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.enabled and not self.sources:
            raise ValueError("names no sources; name one, or set knowledge.enabled to false")
        return self


class Limits(_Section):
    """Narrower limits for the personality's turns; what is left out is the configuration's."""

    max_turn_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """From acknowledgement to end."""
    max_steps: int | None = Field(default=None, ge=1, le=1000)
    """Steps run, of whatever kind."""
    max_attempts: int | None = Field(default=None, ge=1, le=10)
    """Attempts at each step."""


class Manifest(_Section):
    """All that `manifest.yaml` may say."""

    id: Annotated[str, AfterValidator(_identifier)]
    """Names the personality."""
    version: Annotated[str, AfterValidator(_semantic)]
    """The pack's version, semantic."""
    name: str = Field(min_length=1, max_length=128)
    """The personality's name, for people."""
    description: str = Field(min_length=1, max_length=4096)
    """What it is good for."""
    author: str = Field(default="", max_length=256)
    """Who made it."""
    created_date: date | None = None
    """When it was made, such as 2025-05-10."""
    provider_settings: ProviderSettings = ProviderSettings()
    system_prompt: SystemPrompt
    tools: Tools = Tools()
    abilities: Abilities = Abilities()
    knowledge: Knowledge = Knowledge(enabled=False)
    limits: Limits = Limits()


def parse(content: bytes) -> tuple[Manifest, Lines]:
    """Returns a manifest and where its keys are. Raises PackError, with the line."""
    value, lines = _read(content)
    try:
        return Manifest.model_validate(value), lines
    except ValidationError as error:
        raise _explain(error, lines) from None


def decode(file: str, content: bytes) -> str:
    """Returns a file's text. Raises PackError for what is not UTF-8, or has NUL, with the line."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PackError(file, line, "not UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise PackError(file, text.count("\n", 0, text.index("\0")) + 1, "has a NUL character; remove it")
    return text


def _read(content: bytes) -> tuple[Any, Lines]:
    if len(content) > MAX_MANIFEST_BYTES:
        raise PackError(FILE, 0, f"larger than {MAX_MANIFEST_BYTES} bytes; move long texts into files of the pack")
    text = decode(FILE, content)
    lines = Lines()
    try:
        events = yaml.parse(text, Loader=_LOADER)
        nodes = (event for event in events if not isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent))
        first = next(nodes)
        if not isinstance(first, yaml.MappingStartEvent):
            raise PackError(FILE, 1, "not a mapping; start with a line such as `id: my-personality`")
        value = _value(first, nodes, (), lines)
        next(nodes)  # The document's end.
        if not isinstance(next(nodes), yaml.StreamEndEvent):
            raise PackError(FILE, 1, "more than one document; keep one")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise PackError(FILE, line, f"not YAML: {error.problem}; mend the line") from None
    except yaml.YAMLError:
        raise PackError(FILE, 0, "not YAML: a character that it does not allow; remove control characters") from None
    return value, lines


def _value(event: yaml.Event, rest: Iterator[yaml.Event], path: _Path, lines: Lines) -> Any:
    """Returns the value that begins with `event`: texts, lists and mappings alone, so that nothing can hide in it."""
    line = _line(event)
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise PackError(FILE, line, "aliases and anchors are not taken; write the value out")
    if getattr(event, "tag", None) not in _DEFAULT_TAGS:
        raise PackError(FILE, line, "tags such as `!!int` are not taken; write the value alone")
    if len(path) > _MAX_DEPTH:
        raise PackError(FILE, line, f"nested deeper than {_MAX_DEPTH} levels; no key needs that")
    match event:
        case yaml.ScalarEvent():
            return event.value
        case yaml.SequenceStartEvent():
            items: list[Any] = []
            while not isinstance(item := next(rest), yaml.SequenceEndEvent):
                place = (*path, len(items))
                lines[place] = _line(item)
                items.append(_value(item, rest, place, lines))
            return items
        case _:
            return _mapping(rest, path, lines)


def _mapping(rest: Iterator[yaml.Event], path: _Path, lines: Lines) -> dict[str, Any]:
    values: dict[str, Any] = {}
    while not isinstance(event := next(rest), yaml.MappingEndEvent):
        key = _value(event, rest, (*path, ""), Lines())
        if not isinstance(key, str):
            raise PackError(FILE, _line(event), "a key must be a word")
        if key in values:
            raise PackError(FILE, _line(event), f"{key!r} is there twice; remove one")
        lines[(*path, key)] = _line(event)
        values[key] = _value(next(rest), rest, (*path, key), lines)
    return values


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _explain(error: ValidationError, lines: Lines) -> PackError:
    # An unknown key comes first: it is often why another is missing.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            problem = "unknown key; remove it, or mend its spelling"
        case "missing":
            problem = "missing; add it"
        case "value_error":
            problem = first["msg"].removeprefix("Value error, ")
        case _:
            problem = f"{first['msg'][:1].lower()}{first['msg'][1:]}, not {_shown(first['input'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return PackError(FILE, lines.find(*first["loc"]), f"{key}: {problem}{more}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
