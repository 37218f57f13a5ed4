"""A function's signature and docstring are the tool's contract: what is published and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, Field

from agentshell.mesh.errors import AgentShellError
from agentshell.tool.arguments import ArgumentError
from agentshell.tool.builtin.table import TOOLS
from agentshell.tool.function import MAX_OUTPUT_BYTES, Function, Repeat
from agentshell.tool.invocation import Invocation
from kfm.error.v1 import error_pb2

NOBODY: Any = None


class Page(BaseModel):
    """A page."""

    number: int
    text: str


class Book(BaseModel):
    """Pages."""

    pages: list[Page]


async def read(
    _invocation: Invocation,
    /,
    *,
    title: Annotated[str, Field(min_length=1, description="Of the book.")],
    pages: Annotated[list[int], Field(max_length=3)],
    scale: float = 1.0,
    size: Literal["small", "large"] = "small",
) -> Book:
    """Reads a book."""
    if title == "Nothing":
        raise ArgumentError("title", "no such book; ask for another")
    text = title * (1 if size == "small" else MAX_OUTPUT_BYTES)
    return Book(pages=[Page(number=round(page * scale), text=text) for page in pages])


READ = Function(read, Repeat.READ)


def struct(value: Mapping[str, Any]) -> Struct:
    made = Struct()
    made.update(value)
    return made


async def called(**arguments: Any) -> Any:
    output = await READ.call(READ.check(struct(arguments)), NOBODY)
    return MessageToDict(output)


async def refused(**arguments: Any) -> AgentShellError:
    with pytest.raises(AgentShellError) as caught:
        await called(**arguments)
    return caught.value


def test_the_signature_and_the_docstring_are_the_tools_definition() -> None:
    assert MessageToDict(READ.definition) == {
        "name": "read",
        "description": "Reads a book.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "title": {"type": "string", "minLength": 1, "description": "Of the book."},
                "pages": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
                "scale": {"type": "number", "default": 1.0},
                "size": {"type": "string", "enum": ["small", "large"], "default": "small"},
            },
            "required": ["title", "pages"],
            "additionalProperties": False,
        },
        "outputSchema": {
            "type": "object",
            "description": "Pages.",
            "properties": {"pages": {"type": "array", "items": {"$ref": "#/$defs/Page"}}},
            "required": ["pages"],
            "$defs": {
                "Page": {
                    "type": "object",
                    "description": "A page.",
                    "properties": {"number": {"type": "integer"}, "text": {"type": "string"}},
                    "required": ["number", "text"],
                }
            },
        },
    }


async def test_arguments_that_fit_reach_the_function_and_what_it_returns_comes_back() -> None:
    assert await called(title="A", pages=[1, 2.0], scale=2) == {
        "pages": [{"number": 2, "text": "A"}, {"number": 4, "text": "A"}]
    }


@pytest.mark.parametrize(
    ("arguments", "problem", "field"),
    [
        ({"pages": []}, "title: missing; give it", "title"),
        ({"title": "A", "pages": ["1"]}, "pages.0: input should be a valid integer, not '1'", "pages.0"),
        (
            {"title": "A", "pages": [1.5]},
            "pages.0: input should be a valid integer, not 1.5",
            "pages.0",
        ),
        (
            {"title": "", "pages": [], "size": "huge"},
            "title: string should have at least 1 character, not ''; "
            "size: input should be 'small' or 'large', not 'huge'",
            "title",
        ),
        (
            {"title": "A", "pages": [], "colour": "red"},
            "colour: no such argument; the arguments are: title, pages, scale, size",
            "colour",
        ),
        ({"title": "Nothing", "pages": []}, "title: no such book; ask for another", "title"),
    ],
)
async def test_arguments_that_do_not_fit_are_named_so_that_a_model_can_mend_them(
    arguments: dict[str, Any], problem: str, field: str
) -> None:
    error = await refused(**arguments)
    assert (error.reason, error.message, error.metadata) == (
        error_pb2.ERROR_REASON_TOOL_ARGUMENTS_INVALID,
        f"arguments of tool 'read': {problem}. Correct them and call it again",
        {"tool": "read", "field": field},
    )


async def test_an_output_beyond_the_limit_is_refused() -> None:
    error = await refused(title="A", pages=[1], size="large")
    assert (error.reason, error.metadata) == (
        error_pb2.ERROR_REASON_TOO_LARGE,
        {"tool": "read", "limit_bytes": str(MAX_OUTPUT_BYTES)},
    )


def test_every_built_in_tool_says_what_it_and_each_of_its_arguments_are_for() -> None:
    for name, function in TOOLS.items():
        definition = MessageToDict(function.definition)
        assert definition["name"] == name
        assert definition["description"]
        assert all(argument["description"] for argument in definition["inputSchema"]["properties"].values())
