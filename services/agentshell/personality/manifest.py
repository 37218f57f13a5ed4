"""The manifest of a pack: what `manifest.yaml` may say, and the line that breaks the rules."""

from __future__ import annotations

import re
from datetime import date
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from agentshell.personality import yaml_file
from agentshell.personality.tool_manifest import McpTools, OpenApi
from agentshell.personality.yaml_file import Lines

FILE = "manifest.yaml"
# Those of `agentshell.tool`, which this may not import; a test keeps the two the same.
BUILT_IN_TOOLS = ("ask_agent", "calculator", "clock", "http_get", "memory_search", "memory_write")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# https://semver.org, without the parts that only its own grammar needs.
_SEMANTIC = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_WORD = re.compile(r"[a-z0-9][a-z0-9_.:/-]{0,63}")

# Below these keys numbers and `true` are not text, as in JSON: the form is the contract's or a tool's.
_TYPED = (("plan", "steps"), ("tools", "openapi"))


def _identifier(text: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError("write 1 to 128 letters, digits, '.', '_' and '-', a letter or digit first")
    return text


def _semantic(text: str) -> str:
    if not _SEMANTIC.fullmatch(text):
        raise ValueError("not a semantic version; write three numbers, such as 1.0.0")
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError(
            "write 1 to 64 lower-case letters, digits, '_', '.', ':', '/' and '-', a letter or digit first"
        )
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


def _pattern(expression: re.Pattern[str]) -> Any:
    """Returns the pattern for editors to check; our own validator does so too, with a better message."""
    return Field(json_schema_extra={"pattern": f"^{expression.pattern}$"})


_InnerPath = Annotated[str, AfterValidator(_inside)]
_Word = Annotated[str, AfterValidator(_word), _pattern(_WORD)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ProviderSettings(_Section):
    """The model that the personality wants; a turn may name another."""

    default_provider: str = Field(default="", max_length=64)
    """Such as `local`, `openai` or `anthropic`; empty: the configuration's."""
    default_model: str = Field(default="", max_length=128)
    """The provider's name for the model; empty: the provider's default."""
    model_parameters: dict[str, str] = {}
    """Reserved: must be empty in this release."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model_parameters:
            raise ValueError("model_parameters are not supported in this release; remove them")
        return self


class Variable(_Section):
    """A variable of the prompt's template."""

    name: Annotated[str, AfterValidator(_variable_name), _pattern(_NAME)]
    """Its name in the template."""
    default: str
    """Its value."""
    description: str = ""
    """Its purpose, for people to read."""


class SystemPrompt(_Section):
    """What the model is told first."""

    template_file: _InnerPath
    """A Jinja2 template of the pack, such as `prompts/system.md`."""
    variables: tuple[Variable, ...] = ()
    """All the names that the template may use."""


class Tools(_Section):
    """The tools that the model may ask for: built-in ones, functions of `tools/*.py`, and those described here."""

    enabled: bool = False
    """Whether they are used."""
    module: str = ""
    """Must be empty if tools are enabled: functions are found in any of `tools/*.py`."""
    exposed_tools: tuple[str, ...] = ()
    """Their names."""
    tier: Literal["wasm", "native"] = "wasm"
    """The sandbox of the pack's own tools: native is for C extensions, and an operator must allow it."""
    openapi: OpenApi | None = None
    """HTTP operations; the exposed ones are tools."""
    mcp: tuple[McpTools, ...] = ()
    """Tools of Model Context Protocol servers, exposed without being named again."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the personality's tools."""
        served = (name for server in self.mcp for name in server.tools)
        return (*self.exposed_tools, *served) if self.enabled else ()

    @field_validator("module")
    @classmethod
    def _check_module(cls, module: str, info: ValidationInfo) -> str:
        if module and info.data.get("enabled"):
            raise ValueError(f"{module!r} is not needed: functions are found in all of tools/*.py; remove it")
        return module

    @field_validator("exposed_tools")
    @classmethod
    def _check_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not info.data.get("enabled"):
            return names
        if len(set(names)) < len(names):
            raise ValueError("a name appears twice; remove one")
        return names

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.names)) < len(self.names):
            raise ValueError("a tool of mcp has a name that is already taken; leave one out")
        if self.enabled and not self.names:
            raise ValueError("names no exposed_tools; name one, or set tools.enabled to false")
        return self


class Abilities(_Section):
    """What the personality's tools may ask of the host, if an operator allows it."""

    http_hosts: tuple[Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:[0-9]+)?$")], ...] = ()
    """Hosts that they may call: `host`, or `host:port`."""


class Source(_Section):
    """A file or a directory of knowledge."""

    type: Literal["file", "directory"]
    """What `path` is."""
    path: _InnerPath
    """Where it is in the pack, such as `knowledge`."""
    loader: Literal["auto", "markdown", "text"] = "auto"
    """How to read it; auto: `.md` is Markdown, `.txt` is text, and nothing else is accepted."""


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


class Planning(_Section):
    """How the personality's turns are planned, unless their caller says."""

    strategy: Literal["direct", "planned"] | None = None
    """Direct: retrieve, ask the model, run the tools that it asks for. Planned: have the model write a plan first."""
    steps: Annotated[tuple[dict[str, Any], ...], Field(max_length=100)] = ()
    """The plan itself: steps in the form of `kfm.turn.v1.Step`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.strategy and self.steps:
            raise ValueError("has a strategy and steps; keep one of the two")
        return self


class Limits(_Section):
    """Limits for the personality's turns. The configuration supplies those left out, and caps the others."""

    max_turn_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """From acknowledgement to end."""
    max_steps: int | None = Field(default=None, ge=1, le=1000)
    """Steps run, of any kind."""
    max_attempts: int | None = Field(default=None, ge=1, le=10)
    """Attempts at each step."""
    max_tokens: int | None = Field(default=None, ge=1, le=2**53)
    """Tokens read and written by the turn's models."""
    max_cost_usd: float | None = Field(default=None, ge=0.000001, le=1_000_000)
    """What a turn may cost. A step whose cost is unknown ends a turn that has this limit."""


class Manifest(_Section):
    """All that `manifest.yaml` may say."""

    id: Annotated[str, AfterValidator(_identifier), _pattern(_ID)]
    """Names the personality."""
    version: Annotated[str, AfterValidator(_semantic), _pattern(_SEMANTIC)]
    """The pack's semantic version."""
    name: str = Field(min_length=1, max_length=128)
    """The personality's name, for people."""
    description: str = Field(min_length=1, max_length=4096)
    """What it is good for."""
    author: str = Field(default="", max_length=256)
    """Who made it."""
    created_date: date | None = None
    """When it was made, such as 2025-05-10."""
    category: _Word = ""
    """Its category, such as `cooking`."""
    tags: Annotated[tuple[_Word, ...], Field(max_length=32)] = ()
    """Words to find it by."""
    capabilities: Annotated[tuple[_Word, ...], Field(max_length=32)] = ()
    """What it can do, such as `translate`; also to find it by."""
    provider_settings: ProviderSettings = ProviderSettings()
    system_prompt: SystemPrompt
    tools: Tools = Tools()
    abilities: Abilities = Abilities()
    knowledge: Knowledge = Knowledge(enabled=False)
    plan: Planning = Planning()
    limits: Limits = Limits()


def parse(content: bytes) -> tuple[Manifest, Lines]:
    """Returns a manifest and the lines of its keys. Raises PackError, with the line."""
    return yaml_file.parse(Manifest, FILE, content, _TYPED)
