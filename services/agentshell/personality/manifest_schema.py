"""The JSON Schema (2020-12) of `manifest.yaml`, for editors, made from the models that read it.

`python -m agentshell.personality.manifest_schema FILE` writes it; `make gen` does so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from agentshell.personality.manifest import Manifest
from agentshell.turn.plan import SAID_BY_SHELL
from kfm.turn.v1.turn_pb2 import Step

FILE = "manifest.schema.json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DURATION = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,9})?s$", "description": "Such as `1.5s`."}
_WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Duration": _DURATION,
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
}
_TYPES: dict[int, dict[str, Any]] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
}


def text() -> str:
    """Returns the schema as the text of its file."""
    schema = _untitled(Manifest.model_json_schema())
    definitions = schema.pop("$defs")
    definitions["Planning"]["properties"]["steps"]["items"] = _message(Step.DESCRIPTOR, definitions)
    whole = {"$schema": _DIALECT, "title": "The manifest of a personality pack", **schema, "$defs": definitions}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _untitled(schema: Any) -> Any:
    """Returns a schema without what only repeats the keys' names, or only says that a key is optional."""
    if isinstance(schema, list):
        return [_untitled(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    keys = cast("dict[str, Any]", schema)
    if "$ref" in keys:
        return {"$ref": keys["$ref"]}
    if "anyOf" in keys and keys.get("default", "") is None:
        [given] = [kind for kind in keys["anyOf"] if kind != {"type": "null"}]
        keys = {**given, "description": keys["description"]}
    return {key: _untitled(value) for key, value in keys.items() if key != "title" or isinstance(value, dict)}


def _message(message: Descriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns a reference to the schema of a message of the contract, and adds that to the definitions."""
    if message.full_name in _WELL_KNOWN:
        return _WELL_KNOWN[message.full_name]
    if message.full_name not in definitions:
        properties: dict[str, Any] = {}
        definitions[message.full_name] = {"type": "object", "properties": properties, "additionalProperties": False}
        fields = [field for field in message.fields if message != Step.DESCRIPTOR or field.name not in SAID_BY_SHELL]
        properties |= {field.name: _field(field, definitions) for field in fields}
    return {"$ref": f"#/$defs/{message.full_name}"}


def _field(field: FieldDescriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _value(field.message_type.fields[1], definitions)}
    value = _value(field, definitions)
    return {"type": "array", "items": value} if field.is_repeated else value


def _value(field: FieldDescriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    if field.message_type:
        return _message(field.message_type, definitions)
    if field.enum_type:
        return {"enum": [value.name for value in field.enum_type.values]}
    return _TYPES[field.cpp_type]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text())
