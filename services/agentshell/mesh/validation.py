"""Checks requests against the rules that the contract itself states (`buf.validate`), and that JSON in them is JSON."""

from __future__ import annotations

from collections.abc import Iterator

import protovalidate
from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_VIOLATIONS_SHOWN = 20
_NUMBER = b"\x11"  # How the wire has a Value's number: this tag, then eight bytes, the lowest first.
_NO_NUMBERS = (b"\x7f", b"\xff")


def check(request: Message, within: str = "") -> None:
    """Returns if the request keeps the contract's rules. Raises INVALID_REQUEST with a violation a field.

    `within` is the field of the request that the message is; empty: it is the whole.
    """
    found = [violation.proto for violation in protovalidate.collect_violations(request)[:_VIOLATIONS_SHOWN]]
    violations = [(_path(violation.field, within), violation.message) for violation in found]
    if not found and _may_have_no_number(request.SerializeToString()):  # Rarely: to look at each field takes longer.
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
    """Returns whether there may be a NaN or an infinity in a message's bytes: a double whose exponent is all ones."""
    at = content.find(_NUMBER)
    while at >= 0:
        if content[at + 8 : at + 9] in _NO_NUMBERS and content[at + 7] >= 0xF0:
            return True
        at = content.find(_NUMBER, at + 1)
    return False


def _no_json(message: Message, path: str) -> Iterator[str]:
    """Yields the fields that are to be JSON and are not: services and clients fail as they read them."""
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
