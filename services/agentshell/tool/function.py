"""A tool that is one of our async functions: its signature and docstring are its contract."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, get_type_hints

from google.protobuf.struct_pb2 import Struct, Value
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from agentshell.mesh.errors import AgentShellError
from agentshell.tool import arguments
from agentshell.tool.arguments import ArgumentError
from agentshell.tool.invocation import Invocation
from kfm.error.v1 import error_pb2
from kfm.tool.v1 import tool_service_pb2 as pb

MAX_OUTPUT_BYTES = 256 * 1024


class Repeat(Enum):
    """How a repeated request gets the first result."""

    PURE = "pure"
    """The result depends only on the arguments, and is computed again: nothing is kept."""
    READ = "read"
    """Running it changes nothing: the result of the first run is kept after it."""
    WRITE = "write"
    """Running it changes something: the request is claimed before the run, and the result kept after it."""


class Function:
    """A tool made from `run(invocation, /, *, name: type = default, ...) -> BaseModel`.

    `run` may omit `invocation`. Its name becomes the tool's and its docstring the description; its keyword arguments
    give the input's JSON Schema (2020-12), and the model that it returns gives the output's.
    """

    def __init__(self, run: Callable[..., Awaitable[BaseModel]], repeat: Repeat) -> None:
        self.repeat = repeat
        self._run = run
        self._arguments = arguments.model_of(run)
        parameters = inspect.signature(run).parameters.values()
        self._takes_invocation = any(parameter.kind is parameter.POSITIONAL_ONLY for parameter in parameters)
        output: type[BaseModel] = get_type_hints(run)["return"]
        self.definition = pb.Tool(
            name=run.__name__,
            description=inspect.getdoc(run) or "",
            input_schema=schema_of(self._arguments, "validation"),
            output_schema=schema_of(output, "serialization"),
        )

    def check(self, given: Struct) -> Mapping[str, Any]:
        """Returns the arguments as `call` takes them. Raises TOOL_ARGUMENTS_INVALID."""
        return arguments.check(self.definition.name, self._arguments, given)

    async def call(self, checked: Mapping[str, Any], invocation: Invocation) -> Value:
        """Runs the tool. Raises TOOL_ARGUMENTS_INVALID, TOO_LARGE, and what the tool raises."""
        host = (invocation,) if self._takes_invocation else ()
        try:
            found = await self._run(*host, **checked)
        except ArgumentError as error:
            raise arguments.invalid(self.definition.name, [(error.name, error.problem)]) from error
        output = Value()
        output.struct_value.update(found.model_dump(mode="json"))
        return bounded(self.definition.name, output)


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes from names: a model pays for them and learns nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def bounded(tool: str, output: Value) -> Value:
    """Returns the output unless it is too large for a result. Raises TOO_LARGE."""
    if output.ByteSize() > MAX_OUTPUT_BYTES:
        raise AgentShellError(
            error_pb2.ERROR_REASON_TOO_LARGE,
            f"tool {tool!r} answered more than {MAX_OUTPUT_BYTES} bytes: ask it for less",
            metadata={"tool": tool, "limit_bytes": str(MAX_OUTPUT_BYTES)},
        )
    return output


def schema_of(model: type[BaseModel], mode: JsonSchemaMode) -> Struct:
    """Returns the JSON Schema of a model: of its input (`validation`), or of its output (`serialization`)."""
    made = model.model_json_schema(schema_generator=_Untitled, mode=mode)
    for titled in (made, *made.get("$defs", {}).values()):
        titled.pop("title", None)
    schema = Struct()
    schema.update(made)
    return schema
