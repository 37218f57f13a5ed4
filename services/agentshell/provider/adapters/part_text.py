"""Turns parts into text for vendors that have no form of their own for them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import quoteattr

from google.protobuf import struct_pb2

from agentshell.content import plain
from kfm.content.v1 import content_pb2

_CLOSING = "</passage"
# Tools' schemas, which recur in every call: making one from its Struct takes longer than the rest of a tool.
_KEPT_SCHEMAS = 256
_MAX_KEPT_BYTES = 8 * 1024


def passage(passage: content_pb2.Passage, number: int) -> str:
    """Returns a passage as delimited text: evidence, numbered for citing, that cannot close its own delimiter."""
    title, source = quoteattr(passage.title), quoteattr(passage.source_uri)
    text = passage.text.replace(_CLOSING, "<\\/passage")
    return f'<passage number="{number}" title={title} source={source}>\n{text}\n</passage>'


def result(result: content_pb2.ToolResult) -> str:
    """Returns what a tool answered: a text as it is, anything else as JSON."""
    if result.output.WhichOneof("kind") == "string_value":
        return result.output.string_value
    return dump(result.output)


def marked_result(answered: content_pb2.ToolResult) -> str:
    """Returns what a tool answered, marked if it failed, for APIs that have no field for that."""
    return f"Error: {result(answered)}" if answered.is_error else result(answered)


def dump(value: struct_pb2.Struct | struct_pb2.Value) -> str:
    """Returns a structure as JSON with sorted keys: a Struct's own order differs from process to process."""
    return json.dumps(plain(value), ensure_ascii=False, sort_keys=True)


def schema(value: struct_pb2.Struct) -> dict[str, Any]:
    """Returns a JSON Schema, always in the same order, so that vendors' prompt caches hit."""
    return json.loads(dump(value))


def tool_schema(value: struct_pb2.Struct) -> Mapping[str, Any]:
    """Returns the JSON Schema of a tool's arguments, as `schema` does. Callers share it and must not change it."""
    content = value.SerializeToString(deterministic=True)
    return _kept_schema(content) if len(content) <= _MAX_KEPT_BYTES else schema(value)


@lru_cache(maxsize=_KEPT_SCHEMAS)
def _kept_schema(content: bytes) -> Mapping[str, Any]:
    return schema(struct_pb2.Struct.FromString(content))
