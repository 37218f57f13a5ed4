"""Schemas of tools, converted from their Structs once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from agentshell.provider.adapters import part_text


def schema(properties: int) -> dict[str, Any]:
    names = [f"field_{number}" for number in range(properties)]
    inner = {"type": "array", "items": {"type": "integer", "minimum": 1}, "description": "Größe"}
    return {"type": "object", "properties": dict.fromkeys(names, inner), "required": names, "closed": None}


@pytest.mark.parametrize("properties", [0, 1, 400])
def test_a_tools_schema_is_what_it_was_made_of_in_one_order_each_time_it_is_asked_for(properties: int) -> None:
    said = schema(properties)
    value, other = Struct(), Struct()
    value.update(said)
    other.update(dict(reversed(said.items())))
    ordered = json.dumps(said, sort_keys=True)
    assert [json.dumps(part_text.tool_schema(each)) for each in (value, other, value)] == [ordered] * 3


def test_tools_that_differ_have_schemas_that_differ() -> None:
    one, two = Struct(), Struct()
    one.update({"type": "object"})
    two.update({"type": "array"})
    assert (part_text.tool_schema(one), part_text.tool_schema(two)) == ({"type": "object"}, {"type": "array"})
