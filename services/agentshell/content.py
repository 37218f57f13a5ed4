"""Converts messages and Protobuf values to and from plain text and values, and adds up usage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message as AnyMessage
from google.protobuf.struct_pb2 import Struct, Value

from kfm.content.v1.content_pb2 import Message, Part, Role, Text, ToolCall, Usage

MAX_DEPTH = 24
_MAX_WHOLE_NUMBER = 2**53  # Protobuf values hold only floats, which beyond this no longer identify one integer.

Plain = None | bool | int | float | str | Sequence["Plain"] | Mapping[str, "Plain"]


def text_of(message: Message) -> str:
    """Returns the text of a message: its text parts, joined by newlines."""
    return "\n".join(part.text.text for part in message.parts if part.HasField("text"))


def calls_of(message: Message) -> list[ToolCall]:
    """Returns the tool calls in a message."""
    return [part.tool_call for part in message.parts if part.HasField("tool_call")]


def plain_of(message: Message) -> Plain:
    """Returns the data in a message: a tool's result, or else its text parsed as JSON; None if it is neither."""
    for part in message.parts:
        if part.HasField("tool_result"):
            return plain(part.tool_result.output)
    try:
        return json.loads(text_of(message))
    except ValueError:
        return None


def plain(value: Value | Struct) -> Any:
    """Returns a Protobuf value as Python objects; a whole number up to 2**53 becomes an int."""
    return _whole(json_format.MessageToDict(value))


def fill(message: AnyMessage, value: Plain) -> None:
    """Fills a Protobuf value or struct from Python objects.

    Raises ValueError for what JSON cannot express, and for nesting so deep that a message around it, and one around
    that, could not be parsed: Protobuf parsers stop at 100 levels, and each level of JSON takes three.
    """
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    try:
        json_format.ParseDict(value, message)  # pyright: ignore[reportArgumentType] - a Value is any JSON
        json_format.MessageToDict(message)  # Fails for NaN and infinities, which Python accepts and JSON lacks.
    except (json_format.ParseError, json_format.SerializeToJsonError) as error:
        raise ValueError(str(error)) from None


def message_of(value: Plain, role: Role.ValueType) -> Message:
    """Returns a message that holds a value: text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return Message(role=role, parts=[Part(text=Text(text=text))])


def add_usage(total: Usage, used: Usage) -> None:
    """Adds one call's usage to a total. Once any call's cost is unknown, so is the total's."""
    total.input_tokens += used.input_tokens
    total.output_tokens += used.output_tokens
    total.cached_input_tokens += used.cached_input_tokens
    total.reasoning_tokens += used.reasoning_tokens
    total.cache_write_tokens += used.cache_write_tokens
    total.long_cache_write_tokens += used.long_cache_write_tokens
    total.image_input_tokens += used.image_input_tokens
    total.audio_input_tokens += used.audio_input_tokens
    total.audio_output_tokens += used.audio_output_tokens
    total.cached_answer_count += used.cached_answer_count
    total.estimated |= used.estimated
    if not used.HasField("cost"):
        total.ClearField("cost")
    elif total.HasField("cost"):
        total.cost.amount_micros += used.cost.amount_micros


def _depth(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)  # pyright: ignore[reportUnknownArgumentType] - JSON
        case list():
            return 1 + max(map(_depth, value), default=0)  # pyright: ignore[reportUnknownArgumentType] - JSON
        case _:
            return 0


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) <= _MAX_WHOLE_NUMBER:
            return int(value)
        case list():
            return [_whole(item) for item in value]  # pyright: ignore[reportUnknownVariableType] - JSON
        case dict():
            return {key: _whole(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value
