"""Which output schemas OpenAI can enforce."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import struct_pb2

from agentshell.provider.adapters import strict_schema

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
OPEN = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def within(schema: Any) -> dict[str, Any]:
    return {**CITY, "properties": {"city": schema}}


@pytest.mark.parametrize(
    ("schema", "is_strict"),
    [
        (CITY, True),
        (within(CITY), True),
        (within({"type": "array", "items": CITY}), True),
        (within({"anyOf": [CITY, {"type": "null"}]}), True),
        ({**within({"$ref": "#/$defs/city"}), "$defs": {"city": CITY}}, True),
        (OPEN, False),
        ({**CITY, "required": []}, False),
        ({"type": "array", "items": CITY}, False),
        ({"anyOf": [CITY]}, False),
        ({**CITY, "anyOf": [CITY]}, False),
        ({**CITY, "not": {}}, False),
        (within(True), False),
        (within(OPEN), False),
        (within({"type": ["object", "null"]}), False),
        (within({"type": "array", "items": OPEN}), False),
        (within({"oneOf": [CITY]}), False),
        ({**within({"$ref": "#/$defs/city"}), "$defs": {"city": OPEN}}, False),
    ],
)
def test_a_model_is_held_to_a_schema_of_the_strict_kind(schema: dict[str, Any], is_strict: bool) -> None:
    wanted = struct_pb2.Struct()
    wanted.update(schema)

    assert strict_schema.answer(wanted) == {"name": "answer", "schema": schema, "strict": is_strict}
