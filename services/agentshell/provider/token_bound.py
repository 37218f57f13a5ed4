"""Bounds the tokens that a request can have, for reserving what it may cost. Pure.

Every vendor's tokenizer works on bytes, and no token is shorter than one: a text has no more tokens than bytes. What
vendors add for messages, tools and images is bounded by constants above the largest figure that any of them documents.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format
from google.protobuf.message import Message as AnyMessage

from kfm.content.v1.content_pb2 import Part
from kfm.provider.v1 import provider_service_pb2 as pb

_REQUEST_TOKENS = 64
_MESSAGE_TOKENS = 16
_PART_TOKENS = 64
_IMAGE_TOKENS = 8192
# The instructions that vendors add for tools, and for answers that follow a schema.
_TOOLS_TOKENS = 1024
_TOOL_TOKENS = 64
# A title may grow when it is escaped: `"` becomes `&quot;`.
_ESCAPED_BYTES_PER_BYTE = 6


def of_texts(texts: Iterable[str]) -> int:
    """Returns the most tokens that texts can have, each a request of its own."""
    return sum(_MESSAGE_TOKENS + _bytes(text) for text in texts)


def of_generation(generation: pb.Generation) -> int:
    """Returns the most tokens that a model can read."""
    count = _REQUEST_TOKENS
    for message in generation.messages:
        count += _MESSAGE_TOKENS + sum(map(_of_part, message.parts))
    if generation.tools or generation.HasField("output_schema"):
        count += _TOOLS_TOKENS + _json(generation.output_schema)
    for tool in generation.tools:
        count += _TOOL_TOKENS + _bytes(tool.name) + _bytes(tool.description) + _json(tool.input_schema)
    return count


def _of_part(part: Part) -> int:
    match part.WhichOneof("kind"):
        case "text":
            count = _bytes(part.text.text)
        case "passage":
            passage = part.passage
            count = _bytes(passage.text) * 2 + _ESCAPED_BYTES_PER_BYTE * _bytes(passage.title + passage.source_uri)
        case "reasoning":
            count = _bytes(part.reasoning.text) + len(part.reasoning.signature)
        case "tool_call":
            count = _bytes(part.tool_call.call_id + part.tool_call.name) + _json(part.tool_call.arguments)
        case "tool_result":
            count = _bytes(part.tool_result.call_id) + _json(part.tool_result.output)
        case _:
            count = _IMAGE_TOKENS
    return _PART_TOKENS + count


def _json(value: AnyMessage) -> int:
    """Returns the size in bytes of a structure as JSON, with the most whitespace and escapes that anybody writes."""
    return len(json_format.MessageToJson(value))


def _bytes(text: str) -> int:
    return len(text.encode())
