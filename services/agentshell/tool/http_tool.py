"""A tool that a manifest describes as an HTTP operation: the host sends the request, with the arguments in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from google.protobuf.struct_pb2 import Struct, Value

from agentshell.content import plain
from agentshell.mesh import ids, web
from agentshell.tool import arguments
from agentshell.tool.builtin.http_get import unavailable
from agentshell.tool.egress import Answer, EgressError
from agentshell.tool.function import MAX_OUTPUT_BYTES, Repeat, bounded
from agentshell.tool.invocation import Invocation
from kfm.personality.v1 import personality_service_pb2 as pb

if TYPE_CHECKING:
    import httpx2

_BODY: Final = "body"
_JSON_TYPE: Final = {"content-type": "application/json"}
_READS: Final = ("GET", "HEAD")


class HttpTool:
    """An operation, as `ToolService` runs it."""

    def __init__(self, operation: pb.HttpOperation) -> None:
        self.definition = operation.tool
        self.repeat = Repeat.READ if operation.method in _READS else Repeat.WRITE
        self._operation = operation

    def check(self, given: Struct) -> Mapping[str, Any]:
        """Returns the arguments as `call` takes them. Raises TOOL_ARGUMENTS_INVALID."""
        checked: dict[str, Any] = plain(given)
        arguments.check_schema(self.definition, checked)
        return checked

    async def call(self, checked: Mapping[str, Any], invocation: Invocation) -> Value:
        """Makes the request and returns `status`, `content_type` and `body`, whatever the status.

        Raises TOOL_ARGUMENTS_INVALID, HOST_NOT_ALLOWED, HTTP_UNAVAILABLE, TOO_LARGE, TOOL_EGRESS_LIMIT and
        TOOL_ABILITY_DENIED.
        """
        name, operation = self.definition.name, self._operation
        url = _url(operation, checked)
        invocation.grant.check_host(url)
        headers = {key: _line(name, key, value) for key, value in _placed(operation, pb.HTTP_PLACE_HEADER, checked)}
        content = json.dumps(checked[_BODY], ensure_ascii=False).encode() if _BODY in checked else b""
        headers |= _JSON_TYPE if content else {}
        if self.repeat is Repeat.WRITE:
            headers["idempotency-key"] = ids.digest("tool", invocation.request_id)  # The same, however often this runs.
        try:
            answer = await invocation.egress.send(
                invocation.budget,
                operation.method,
                url,
                headers,
                content,
                secrets=[invocation.grant.secret(operation.secret, url)] if operation.secret else [],
                max_body_bytes=min(operation.max_response_bytes or MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES),
            )
        except EgressError as error:
            raise unavailable(name, error) from error
        return bounded(name, _output(answer))


def _url(operation: pb.HttpOperation, arguments: Mapping[str, Any]) -> httpx2.URL:
    path = operation.uri
    for name, value in _placed(operation, pb.HTTP_PLACE_PATH, arguments):
        path = path.replace(f"{{{name}}}", _segment(operation.tool.name, name, value))
    query = [
        (name, _text(each))
        for name, value in _placed(operation, pb.HTTP_PLACE_QUERY, arguments)
        for each in (value if isinstance(value, list) else [value])  # pyright: ignore[reportUnknownVariableType] - JSON
    ]
    return web.parse(f"{path}?{urlencode(query)}" if query else path)


def _segment(tool: str, name: str, value: Any) -> str:
    """Returns an argument as one segment of a path, which it cannot escape. Raises TOOL_ARGUMENTS_INVALID."""
    text = _text(value)
    if text in ("", ".", ".."):
        raise arguments.invalid(tool, [(name, "cannot be a part of a path; give it another value")])
    return quote(text, safe="")


def _line(tool: str, name: str, value: Any) -> str:
    """Returns an argument as a header, which it cannot escape. Raises TOOL_ARGUMENTS_INVALID."""
    text = _text(value)
    if not (text.isascii() and text.isprintable()):
        raise arguments.invalid(tool, [(name, "cannot be a header; give it one line of plain characters")])
    return text


def _placed(
    operation: pb.HttpOperation, place: pb.HttpPlace.ValueType, arguments: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yields the arguments that go to a place."""
    for parameter in operation.parameters:
        if parameter.place == place and parameter.name in arguments:
            yield parameter.name, arguments[parameter.name]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _output(answer: Answer) -> Value:
    output = Value()
    fields = output.struct_value.fields
    fields["status"].number_value = answer.response.status_code
    fields["content_type"].string_value = answer.headers.get("content-type", "")
    fields["body"].CopyFrom(web.value_of(answer.response, answer.body))
    return output
