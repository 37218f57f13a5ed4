"""Page tokens (AIP-158): opaque, and good only for the query that they were made for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, cast

from google.protobuf.message import Message

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2


def page_size(asked: int, default: int, most: int) -> int:
    """Returns how many to list: 0 asks for the default, and more than the most is the most."""
    return min(asked or default, most)


def encode(request: Message, *position: str | int) -> str:
    """Returns the token for what comes after `position` in the answer to `request`."""
    packed = json.dumps([_fingerprint(request), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(packed.encode()).decode().rstrip("=")


def decode(request: Message, token: str, *kinds: type[str | int]) -> list[Any] | None:
    """Returns the position in `token`, of the given kinds; None for an empty token. Raises PAGE_TOKEN_INVALID."""
    if not token:
        return None
    try:
        unpacked: Any = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, UnicodeError, ValueError):
        raise _invalid("was not made by this service") from None
    values = cast("list[Any]", unpacked) if isinstance(unpacked, list) else []
    if len(values) != len(kinds) + 1 or not all(type(v) is kind for v, kind in zip(values[1:], kinds, strict=True)):
        raise _invalid("was not made by this service")
    if values[0] != _fingerprint(request):
        raise _invalid("was made for another query")
    return values[1:]


def _invalid(problem: str) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_PAGE_TOKEN_INVALID,
        f"page_token {problem}; repeat the query that gave it, or leave it empty to begin at the first page",
        violations=[("page_token", problem)],
    )


def _fingerprint(request: Message) -> str:
    query = type(request)()
    query.CopyFrom(request)
    for field in ("page_token", "page_size"):
        query.ClearField(field)
    named = request.DESCRIPTOR.full_name.encode() + query.SerializeToString(deterministic=True)
    return hashlib.sha256(named).hexdigest()[:16]
