"""The tools of a pack, read from its `tools/*.py` without running any of it: signatures and docstrings suffice."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from agentshell.personality.yaml_file import PackError, decode

DIRECTORY: Final = "tools"
MAX_FILES_BYTES: Final = 256 * 1024
_MAX_DEPTH: Final = 8

Schema: TypeAlias = dict[str, Any]
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_PLAIN: Final[Mapping[str, Schema]] = {
    "Any": {},
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list": {"type": "array"},
    "dict": {"type": "object"},
    "None": {"type": "null"},
}
_KNOWN: Final = "str, int, float, bool, None, Any, list[...], dict[str, ...], Literal[...], Annotated[..., 'what'], |"


@dataclass(frozen=True, slots=True)
class ToolFunction:
    """A function that a model may call."""

    name: str
    module: str
    """Such as `tools.weather`."""
    description: str
    input_schema: Schema
    output_schema: Schema
    """JSON Schema, 2020-12."""


def sources(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the pack's Python files below `tools`, by path. Raises PackError."""
    paths = [path for path in sorted(files) if path.startswith(f"{DIRECTORY}/") and path.endswith(".py")]
    if sum(len(files[path]) for path in paths) > MAX_FILES_BYTES:
        raise PackError(DIRECTORY, 0, f"its Python files have more than {MAX_FILES_BYTES} bytes; shorten them")
    return {path: decode(path, files[path]) for path in paths}


def find(files: Mapping[str, str], names: Sequence[str]) -> dict[str, ToolFunction]:
    """Returns the functions with these names, by name; leaves out names that no function has. Raises PackError."""
    found: dict[str, tuple[str, _Function]] = {}
    for path, source in files.items():
        for function in _functions(path, source):
            if function.name in names and function.name in found:
                raise PackError(
                    path, function.lineno, f"{function.name!r} is also in {found[function.name][0]}; rename one"
                )
            found[function.name] = path, function
    return {name: _describe(*found[name]) for name in names if name in found}


def _functions(path: str, source: str) -> Iterator[_Function]:
    try:
        body = ast.parse(source, filename=path).body
    except SyntaxError as error:
        raise PackError(path, error.lineno or 0, f"not Python: {error.msg}; fix the line") from None
    except (ValueError, MemoryError, RecursionError):
        raise PackError(path, 0, "too complex to read; write it more simply") from None
    return (node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _describe(path: str, function: _Function) -> ToolFunction:
    docstring = ast.get_docstring(function)
    if not docstring:
        raise PackError(path, function.lineno, f"{function.name} has no docstring; say what it does, for a model")
    return ToolFunction(
        name=function.name,
        module=path.removesuffix(".py").replace("/", "."),
        description=inspect.cleandoc(docstring),
        input_schema=_input_schema(path, function),
        output_schema=_schema(path, function.returns) if function.returns else {},
    )


def _input_schema(path: str, function: _Function) -> Schema:
    taken = function.args
    if refused := [*taken.posonlyargs, *filter(None, (taken.vararg, taken.kwarg))]:
        raise PackError(path, refused[0].lineno, f"{refused[0].arg}: a model passes arguments by name; name each")
    defaults = [*[None] * (len(taken.args) - len(taken.defaults)), *taken.defaults, *taken.kw_defaults]
    properties: Schema = {}
    required: list[str] = []
    for argument, default in zip([*taken.args, *taken.kwonlyargs], defaults, strict=True):
        if argument.annotation is None:
            raise PackError(path, argument.lineno, f"{argument.arg} has no type; annotate it")
        properties[argument.arg] = _schema(path, argument.annotation)
        if default is None:
            required.append(argument.arg)
        elif isinstance(default, ast.Constant) and isinstance(default.value, str | int | float | bool):
            properties[argument.arg]["default"] = default.value
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(path: str, node: ast.expr, depth: int = 0) -> Schema:
    """Returns the schema of an annotation."""
    if depth > _MAX_DEPTH:
        raise PackError(path, node.lineno, f"a type nested deeper than {_MAX_DEPTH} levels; simplify it")
    match node:
        case ast.Constant(value=None):
            return {"type": "null"}
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in _PLAIN:
            return dict(_PLAIN[name])
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return {"anyOf": [_schema(path, left, depth + 1), _schema(path, right, depth + 1)]}
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            return _generic(path, name, inner, depth + 1)
        case _:
            raise PackError(
                path, node.lineno, f"{ast.unparse(node)!r} has no JSON Schema; the known types are {_KNOWN}"
            )


def _generic(path: str, name: str, inner: ast.expr, depth: int) -> Schema:
    match name, inner:
        case "list", _:
            return {"type": "array", "items": _schema(path, inner, depth)}
        case "dict", ast.Tuple(elts=[ast.Name(id="str"), value]):
            return {"type": "object", "additionalProperties": _schema(path, value, depth)}
        case "Optional", _:
            return {"anyOf": [_schema(path, inner, depth), {"type": "null"}]}
        case "Annotated", ast.Tuple(elts=[value, ast.Constant(value=str(said)), *_]):
            return {**_schema(path, value, depth), "description": said}
        case "Literal", ast.Tuple(elts=choices) if all(isinstance(choice, ast.Constant) for choice in choices):
            return {"enum": [choice.value for choice in choices if isinstance(choice, ast.Constant)]}
        case "Literal", ast.Constant(value=value):
            return {"enum": [value]}
        case _:
            raise PackError(
                path, inner.lineno, f"{name}[{ast.unparse(inner)}] has no JSON Schema; the known types are {_KNOWN}"
            )
