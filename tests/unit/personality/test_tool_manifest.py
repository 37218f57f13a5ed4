"""The tools that a manifest describes: HTTP operations and tools of Model Context Protocol servers."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.content import plain
from agentshell.personality import pack, tool_code
from agentshell.personality.yaml_file import PackError

MANIFEST = """id: web
version: 1.0.0
name: N
description: D
system_prompt: {{template_file: prompt.md}}
abilities: {{http_hosts: ["{host}"]}}
tools:
  enabled: true
  exposed_tools: [{exposed}]
  openapi:
    openapi: 3.1.0
    servers: [{{url: "{url}"}}]
    paths:
      {path}:
        get:
          operationId: read
          summary: Reads.
          description: With care.
          responses: {{200: {{description: Well.}}}}
          x-secret: key
          parameters:
            - {{name: id, in: path, required: true, schema: {{type: integer, minimum: 1}}}}
            - {{name: all, in: query, description: Whether all., schema: {{type: boolean, default: false}}}}
            - {{name: X-Of, in: header}}
        put:
          operationId: write
          description: Writes.
          parameters: [{{name: id, in: path, schema: {{type: integer}}}}]
          requestBody:
            required: true
            description: All of it.
            content:
              application/json:
                schema: {{$ref: "#/components/schemas/{reference}"}}
    components:
      schemas:
        Thing: {{type: object, properties: {{part: {{$ref: "#/components/schemas/Thing"}}}}, maxProperties: {most}}}
  mcp:
    - {{server: tracker, tools: [{served}]}}
"""
GIVEN = {
    "host": "api.example.com",
    "exposed": "read, write",
    "url": "https://api.example.com/v1/",
    "path": "/things/{id}",
    "reference": "Thing",
    "most": "3",
    "served": "search, add",
}


def parse(**changes: str) -> Any:
    text = MANIFEST.format(**{**GIVEN, **changes})
    return tool_code.of(pack.parse({"manifest.yaml": text.encode(), "prompt.md": b"Help."}))


def test_an_operation_becomes_a_tool_with_a_schema_of_its_own() -> None:
    read, write = (MessageToDict(operation) for operation in parse().operations)
    properties = write["tool"]["inputSchema"].pop("properties")

    assert read == {
        "tool": {
            "name": "read",
            "description": "Reads.\n\nWith care.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer", "minimum": 1.0},
                    "all": {"type": "boolean", "default": False, "description": "Whether all."},
                    "X-Of": {"type": "string"},
                },
                "required": ["id"],
                "additionalProperties": False,
                "$defs": read["tool"]["inputSchema"]["$defs"],
            },
        },
        "method": "GET",
        "uri": "https://api.example.com/v1/things/{id}",
        "parameters": [
            {"name": "id", "place": "HTTP_PLACE_PATH"},
            {"name": "all", "place": "HTTP_PLACE_QUERY"},
            {"name": "X-Of", "place": "HTTP_PLACE_HEADER"},
        ],
        "secret": "key",
    }
    assert properties["body"] == {"$ref": "#/$defs/Thing", "description": "All of it."}
    assert plain(parse().operations[1].tool.input_schema)["$defs"]["Thing"]["maxProperties"] == 3


def test_only_what_is_exposed_is_a_tool_and_a_servers_tools_are() -> None:
    code = parse(exposed="read")

    assert [operation.tool.name for operation in code.operations] == ["read"]
    assert [(tool.server, tool.name) for tool in code.mcp_tools] == [("tracker", "search"), ("tracker", "add")]
    assert (list(code.http_hosts), dict(code.files)) == (["api.example.com"], {})


@pytest.mark.parametrize(
    ("changes", "line", "problem"),
    [
        ({"host": "example.com"}, 12, "'api.example.com' is not in abilities.http_hosts; add it there"),
        ({"host": "api.example.com:8443"}, 12, "is not in abilities.http_hosts"),
        ({"url": "ftp://api.example.com"}, 12, "string should match pattern"),
        ({"url": "https://me@api.example.com"}, 12, "string should match pattern"),
        ({"url": "https://{host}"}, 12, "string should match pattern"),
        ({"path": "/things"}, 10, "'id' must be in the path as {id}, and a parameter with `in: path`"),
        ({"path": "/things/{id}/{no}"}, 10, "'no' must be in the path as {no}"),
        ({"path": "things"}, 14, "string should match pattern"),
        ({"reference": "Nothing"}, 10, "has an invalid schema"),
        ({"most": "many"}, 10, "has an invalid schema"),
        ({"exposed": "read, nothing"}, 9, "'nothing' is not a function of tools/*.py, an operation of tools.openapi"),
        ({"served": "read"}, 7, "a tool of mcp has a name that is already taken"),
        ({"served": "clock"}, 38, "'clock' is a built-in tool and a tool of tools.mcp; rename one"),
        ({"served": "no good"}, 39, "string should match pattern"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(changes: dict[str, str], line: int, problem: str) -> None:
    with pytest.raises(PackError) as caught:
        parse(**changes)

    assert (caught.value.line, problem in str(caught.value)) == (line, True), str(caught.value)


@pytest.mark.parametrize(
    ("url", "host"), [("http://[::1]:8080", "[::1]:8080"), ("https://Api.example.com", "api.example.com:443")]
)
def test_a_host_is_named_with_its_port_or_by_its_schemes(url: str, host: str) -> None:
    assert parse(url=url, host=host).http_hosts == [host]


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(GIVEN)), st.text(max_size=12)))
def test_whatever_is_written_is_a_pack_or_is_refused(changes: dict[str, str]) -> None:
    try:
        assert parse(**changes).mcp_tools
    except PackError as error:
        assert error.line >= 0  # noqa: PT017 - both outcomes are right
