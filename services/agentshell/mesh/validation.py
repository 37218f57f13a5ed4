"""Checks requests against the contract's own rules (`buf.validate`), and that the JSON in them is valid JSON."""

from __future__ import annotations

from collections.abc import Iterator

import protovalidate
from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_VIOLATIONS_SHOWN = 20
_NUMBER = b"\x11"  # A Value's number on the wire: this tag, then eight bytes, little-endian.
_NO_NUMBERS = (b"\x7f", b"\xff")


def check(request: Message, within: str = "") -> None:
    """Checks that a message keeps the contract's rules. Raises INVALID_REQUEST, with a violation for each field.

    `within` is the path of the message in the request; empty: it is the request.
    """
    found = [violation.proto for violation in protovalidate.collect_violations(request)[:_VIOLATIONS_SHOWN]]
    violations = [(_path(violation.field, within), violation.message) for violation in found]
    if not found and _may_have_no_number(request.SerializeToString()):  # Rare: looking at each field takes longer.
        problem = "has a number that JSON does not have, NaN or an infinity: leave it out"
        violations = [(field, problem) for field in _no_json(request, within)][:_VIOLATIONS_SHOWN]
    if violations:
        raise AgentShellError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "; ".join(f"{field}: {message}" for field, message in violations),
            violations=violations,
        )


def _path(field: protovalidate.FieldPathPb | None, path: str) -> str:
    for element in field.elements if field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path


def _may_have_no_number(content: bytes) -> bool:
    """Returns whether a message's bytes may hold a NaN or an infinity: a double whose exponent is all ones."""
    at = content.find(_NUMBER)
    while at >= 0:
        if content[at + 8 : at + 9] in _NO_NUMBERS and content[at + 7] >= 0xF0:
            return True
        at = content.find(_NUMBER, at + 1)
    return False


def _no_json(message: Message, path: str) -> Iterator[str]:
    """Yields the JSON fields that JSON cannot express: services and clients would fail to read them."""
    if isinstance(message, struct_pb2.Struct | struct_pb2.Value):
        try:
            json_format.MessageToDict(message)
        except ValueError:
            yield path
        return
    for field, value in message.ListFields():
        name = f"{path}.{field.name}" if path else field.name
        if isinstance(value, Message):
            yield from _no_json(value, name)
        elif field.is_repeated and field.message_type and not field.message_type.GetOptions().map_entry:
            for index, item in enumerate(value):
                yield from _no_json(item, f"{name}[{index}]")
