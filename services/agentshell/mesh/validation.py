"""Checks requests against the rules that the contract itself states (`buf.validate`)."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_VIOLATIONS_SHOWN = 20


def check(request: Message, within: str = "") -> None:
    """Returns if the request keeps the contract's rules. Raises INVALID_REQUEST with a violation a field.

    `within` is the field of the request that the message is; empty: it is the whole.
    """
    found = [violation.proto for violation in protovalidate.collect_violations(request)[:_VIOLATIONS_SHOWN]]
    if not found:
        return
    violations = [(_path(violation.field, within), violation.message) for violation in found]
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
