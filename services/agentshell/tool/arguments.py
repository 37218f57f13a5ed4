"""The arguments of a tool call: their model, derived from the tool's signature, and the errors for wrong ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, get_type_hints

from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from agentshell.content import plain
from agentshell.mesh.errors import AgentShellError
from agentshell.schema import Schema
from kfm.error.v1 import error_pb2
from kfm.tool.v1.tool_service_pb2 import Tool

_MAX_PROBLEMS = 8
_MAX_SHOWN_CHARACTERS = 60


class ArgumentError(ValueError):
    """An argument fits the schema, but makes no sense to the tool."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


def model_of(run: Callable[..., Any]) -> type[BaseModel]:
    """Returns the model of what a caller may pass to `run`: its keyword arguments, and nothing else."""
    hints = get_type_hints(run, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(run).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(run.__name__, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def check(tool: str, model: type[BaseModel], arguments: Struct) -> dict[str, Any]:
    """Returns the arguments as `run` takes them. Raises TOOL_ARGUMENTS_INVALID."""
    try:
        checked = model.model_validate(plain(arguments))
    except ValidationError as error:
        raise invalid(tool, _problems(error, model)) from None
    return {name: getattr(checked, name) for name in model.model_fields}


def check_schema(tool: Tool, arguments: Mapping[str, Any]) -> None:
    """Checks the arguments of a tool whose schema is not ours. Raises TOOL_ARGUMENTS_INVALID."""
    told = islice(Schema(plain(tool.input_schema)).problems(arguments), _MAX_PROBLEMS)
    if problems := list(map(_named, told)):
        raise invalid(tool.name, problems)


def invalid(tool: str, problems: Sequence[tuple[str, str]]) -> AgentShellError:
    """The error for arguments that a model can correct: `problems` are pairs of a name and what is wrong with it."""
    said = "; ".join(f"{name}: {problem}" for name, problem in problems)
    return AgentShellError(
        error_pb2.ERROR_REASON_TOOL_ARGUMENTS_INVALID,
        f"arguments of tool {tool!r}: {said}. Correct them and call it again",
        metadata={"tool": tool, "field": problems[0][0]},
    )


def _named(told: str) -> tuple[str, str]:
    """Splits a problem into the argument's name and what is wrong with it."""
    where, _, what = told.partition(": ")
    return where.removeprefix("$.").replace("$", "arguments"), what


def _problems(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    for found in error.errors(include_url=False)[:_MAX_PROBLEMS]:
        match found["type"]:
            case "extra_forbidden":
                problem = f"no such argument; the arguments are: {', '.join(model.model_fields) or 'none'}"
            case "missing":
                problem = "missing; give it"
            case _:
                problem = f"{found['msg'][:1].lower()}{found['msg'][1:]}, not {_short(repr(found['input']))}"
        problems.append((_short(".".join(str(part) for part in found["loc"])), problem))
    return problems


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[: _MAX_SHOWN_CHARACTERS - 3]}..."
