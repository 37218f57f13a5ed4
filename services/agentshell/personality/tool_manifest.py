"""Tools that a manifest describes: HTTP operations in OpenAPI's form, and those of Model Context Protocol servers.

Of OpenAPI 3.1 this takes what a tool needs, and ignores some of the rest, so that a document can be pasted in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentshell.schema import Schema
from kfm.personality.v1 import personality_service_pb2 as pb

METHODS: Final = ("get", "post", "put", "patch", "delete")
BODY: Final = "body"
"""The argument that is sent as the body."""
_JSON: Final = "application/json"
_PORTS: Final = {"http": 80, "https": 443}
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_COMPONENTS, _DEFINITIONS = "#/components/schemas/", "#/$defs/"

_ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_ArgumentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
_Described = dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Parameter(_Section):
    """An argument of an operation."""

    name: _ArgumentName
    """Its name, there and for the model."""
    place: Literal["path", "query", "header"] = Field(alias="in")
    """Where it goes."""
    description: str = Field(default="", max_length=4096)
    """What it is, for a model."""
    required: bool = False
    """Whether it must be given; one in a path always must."""
    type: _Described = Field(default={"type": "string"}, alias="schema")
    """Its JSON Schema."""
    example: Any = None
    """Not used."""


class MediaType(_Section):
    """What a body holds."""

    type: _Described = Field(default={}, alias="schema")
    """Its JSON Schema."""
    example: Any = None
    """Not used."""


class RequestBody(_Section):
    """The JSON body of an operation: the argument `body`."""

    description: str = Field(default="", max_length=4096)
    """What it is, for a model."""
    required: bool = False
    """Whether it must be given."""
    content: dict[Literal["application/json"], MediaType] = Field(min_length=1)
    """What it holds."""


class Operation(_Section):
    """A tool."""

    name: _ToolName = Field(alias="operationId")
    """The tool's name."""
    summary: str = Field(default="", max_length=1024)
    """What it does, for a model."""
    description: str = Field(default="", max_length=4096)
    """More about what it does."""
    parameters: Annotated[tuple[Parameter, ...], Field(max_length=64)] = ()
    """Its arguments."""
    body: RequestBody | None = Field(default=None, alias="requestBody")
    """One more argument."""
    secret: str = Field(default="", max_length=128, alias="x-secret")
    """The name of the secret, in the operator's tool.secrets, that goes with its requests; the tool never sees it."""
    max_response_bytes: int = Field(default=0, ge=0, le=256 * 1024, alias="x-max-response-bytes")
    """The largest response; 0: 256 KiB, which is also the most."""
    responses: Any = None
    """Not used: the result is the response, whatever it is."""
    tags: Any = None
    """Not used."""


class PathItem(_Section):
    """The operations at one path."""

    parameters: Annotated[tuple[Parameter, ...], Field(max_length=64)] = ()
    """Arguments that all of them have."""
    get: Operation | None = None
    """GET."""
    post: Operation | None = None
    """POST."""
    put: Operation | None = None
    """PUT."""
    patch: Operation | None = None
    """PATCH."""
    delete: Operation | None = None
    """DELETE."""


class Server(_Section):
    """Where the operations are."""

    url: str = Field(pattern=r"^https?://[^/?#@{}\s]+(/[^?#{}\s]*)?$")
    """What comes before each path. Its host must be in abilities.http_hosts."""
    description: Any = None
    """Not used."""


class Components(_Section):
    """What schemas refer to."""

    schemas: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], _Described] = {}
    """JSON Schemas by name."""


class OpenApi(_Section):
    """A snippet of OpenAPI 3.1: each of its operations that is exposed is a tool."""

    openapi: Any = None
    """Not used."""
    info: Any = None
    """Not used."""
    servers: Annotated[tuple[Server, ...], Field(min_length=1, max_length=1)]
    """The only server."""
    paths: dict[Annotated[str, Field(pattern=r"^/[^?#\s]*$")], PathItem] = Field(min_length=1)
    """The operations."""
    components: Components = Components()
    """What schemas refer to."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.operations()  # Raises if anything is wrong.
        return self

    @property
    def host(self) -> SplitResult:
        """The server's URL, split into its parts."""
        return urlsplit(self.servers[0].url)

    def operations(self) -> dict[str, pb.HttpOperation]:
        """Returns the tools by name. Raises ValueError."""
        found: dict[str, pb.HttpOperation] = {}
        for path, item in self.paths.items():
            for method in METHODS:
                operation: Operation | None = getattr(item, method)
                if operation is None:
                    continue
                if operation.name in found:
                    raise ValueError(f"operationId {operation.name!r} appears twice; rename one")
                found[operation.name] = self._operation(method, path, item, operation)
        return found

    def _operation(self, method: str, path: str, item: PathItem, operation: Operation) -> pb.HttpOperation:
        own = {parameter.name for parameter in operation.parameters}
        parameters = [*(each for each in item.parameters if each.name not in own), *operation.parameters]
        where = f"{operation.name}: "
        for problem in _problems(path, parameters):
            raise ValueError(where + problem)
        made = pb.HttpOperation(
            method=method.upper(),
            uri=self.servers[0].url.rstrip("/") + path,
            secret=operation.secret,
            max_response_bytes=operation.max_response_bytes,
        )
        for parameter in parameters:
            place = pb.HttpPlace.Value(f"HTTP_PLACE_{parameter.place.upper()}")
            made.parameters.add(name=parameter.name, place=place)
        made.tool.name = operation.name
        made.tool.description = "\n\n".join(filter(None, (operation.summary, operation.description)))
        if not made.tool.description:
            raise ValueError(f"{where}has no summary and no description; say what it does, for a model")
        schema = _input_schema(parameters, operation.body, self.components.schemas)
        try:
            Schema(schema)
            made.tool.input_schema.update(schema)
        except ValueError as error:
            raise ValueError(f"{where}has an invalid schema: {error}") from None
        return made


class McpTools(_Section):
    """Tools of a Model Context Protocol server that the operator configures, and lets the personality use."""

    server: str = Field(min_length=1, max_length=128)
    """Its name in the operator's tool.mcp_servers."""
    tools: Annotated[tuple[_ToolName, ...], Field(min_length=1, max_length=128)]
    """Those that the model may ask for, by their names there."""


def names_host(hosts: Sequence[str], url: SplitResult) -> bool:
    """Returns whether a list of hosts includes a URL's host."""
    port = url.port or _PORTS[url.scheme]
    names = {f"{url.hostname}:{port}", *([url.hostname or ""] if port == _PORTS[url.scheme] else [])}
    return not names.isdisjoint(host.lower().strip("[").replace("]", "") for host in hosts)


def _problems(path: str, parameters: Sequence[Parameter]) -> Iterator[str]:
    names = [parameter.name for parameter in parameters]
    if len(set(names)) < len(names):
        yield "a parameter appears twice; rename one"
    if BODY in names:
        yield f"a parameter cannot be called {BODY!r}; rename it"
    in_path = {parameter.name for parameter in parameters if parameter.place == "path"}
    in_template = set(_PLACEHOLDER.findall(path))
    if missing := sorted(in_path ^ in_template):
        yield f"{missing[0]!r} must be in the path as {{{missing[0]}}}, and a parameter with `in: path`"


def _input_schema(
    parameters: Sequence[Parameter], body: RequestBody | None, components: Mapping[str, _Described]
) -> _Described:
    properties = {each.name: _described(each.type, each.description) for each in parameters}
    required = [each.name for each in parameters if each.required or each.place == "path"]
    if body is not None:
        properties[BODY] = _described(body.content[_JSON].type, body.description)
        required += [BODY] if body.required else []
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return _within({**schema, "$defs": dict(components)} if components else schema)


def _described(schema: _Described, description: str) -> _Described:
    return {**schema, "description": description} if description else schema


def _within(schema: Any) -> Any:
    """Returns a schema whose references to the document's components point to its own definitions instead."""
    match schema:
        case {"$ref": str(target)} if target.startswith(_COMPONENTS):
            return {**schema, "$ref": target.replace(_COMPONENTS, _DEFINITIONS, 1)}
        case dict():
            return {key: _within(value) for key, value in schema.items()}  # pyright: ignore[reportUnknownVariableType] - JSON
        case list():
            return [_within(item) for item in schema]  # pyright: ignore[reportUnknownVariableType] - JSON
        case _:
            return schema
