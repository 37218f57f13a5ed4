"""Output schemas in OpenAI's form. Pure.

OpenAI enforces a schema only if it is of its strict kind: each object closed, all of its properties required, and only
listed keywords of JSON Schema. Any other schema is sent as advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from agentshell.provider.adapters import part_text

_NAME = "answer"
_LOOSE = frozenset(
    {
        "allOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
        "unevaluatedProperties",
        "unevaluatedItems",
        "prefixItems",
        "contains",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "uniqueItems",
    }
)
_SCHEMAS_BY_NAME = ("properties", "$defs", "definitions")


def answer(schema: struct_pb2.Struct) -> dict[str, Any]:
    """Returns the named schema of an answer, and whether the model must follow it."""
    wanted = part_text.schema(schema)
    strict = wanted.get("type") == "object" and "anyOf" not in wanted and is_strict(wanted)
    return {"name": _NAME, "schema": wanted, "strict": strict}


def is_strict(schema: Mapping[str, Any]) -> bool:
    """Returns whether a schema, and all within it, is of OpenAI's strict kind."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    is_open = schema.get("additionalProperties") is not False or {*schema.get("required", ())} != {*properties}
    if _LOOSE & schema.keys() or (is_open and _is_object(schema)):
        return False
    within: list[Any] = [inner for name in _SCHEMAS_BY_NAME for inner in schema.get(name, {}).values()]
    within += schema.get("anyOf", ())
    within += [schema["items"]] if "items" in schema else []
    return all(not isinstance(inner, bool) and is_strict(inner) for inner in within)  # `true` allows anything.


def _is_object(schema: Mapping[str, Any]) -> bool:
    kind: Any = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in schema
