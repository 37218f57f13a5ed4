"""What messages say, as plain text and plain values, and what calls used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message as AnyMessage
from google.protobuf.struct_pb2 import Struct, Value

from kfm.content.v1.content_pb2 import Message, Part, Role, Text, ToolCall, Usage

MAX_DEPTH = 24
_MAX_WHOLE_NUMBER = 2**53  # Beyond it a float, which is all that Protobuf's values know, is not one whole number.

Plain = None | bool | int | float | str | Sequence["Plain"] | Mapping[str, "Plain"]


def text_of(message: Message) -> str:
    """Returns the words of a message, each of its texts on a line of its own."""
    return "\n".join(part.text.text for part in message.parts if part.HasField("text"))


def calls_of(message: Message) -> list[ToolCall]:
    """Returns the tools that a model asks for."""
    return [part.tool_call for part in message.parts if part.HasField("tool_call")]


def plain_of(message: Message) -> Plain:
    """Returns what a message holds as data: a tool's result, else its text read as JSON; None where it is neither."""
    for part in message.parts:
        if part.HasField("tool_result"):
            return plain(part.tool_result.output)
    try:
        return json.loads(text_of(message))
    except ValueError:
        return None


def plain(value: Value | Struct) -> Any:
    """Returns a Protobuf value as Python's own; a number without a fraction becomes an int."""
    return _whole(json_format.MessageToDict(value))


def fill(message: AnyMessage, value: Plain) -> None:
    """Makes a Protobuf value or struct of Python's own.

    Raises ValueError for what JSON has no form of, and for what is nested so deeply that a message around it, and one
    around that, could no longer be read: Protobuf's readers give up at 100 levels, and each of JSON's takes three.
    """
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    try:
        json_format.ParseDict(value, message)  # pyright: ignore[reportArgumentType] - a Value is any JSON
        json_format.MessageToDict(message)  # Fails for NaN and infinities, which Python reads and JSON does not have.
    except (json_format.ParseError, json_format.SerializeToJsonError) as error:
        raise ValueError(str(error)) from None


def message_of(value: Plain, role: Role.ValueType) -> Message:
    """Returns a message that says a value: text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return Message(role=role, parts=[Part(text=Text(text=text))])


def add_usage(total: Usage, used: Usage) -> None:
    """Adds what a call used. The cost is unknown as soon as one call's is."""
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
