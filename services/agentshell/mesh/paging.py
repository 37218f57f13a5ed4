"""Page tokens (AIP-158): opaque, and good only for the tenant and the query that they were made for."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from agentshell.mesh import call
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_DIGEST_BYTES = 12
_INTEGER_BITS = 63  # Besides the sign: what a database's integer holds.
_SEPARATOR = "\0"
# Fields that select a part of the answer; all others are the query.
_POSITIONS = frozenset({"page_token", "page_size", "cursor"})
_PROBLEM = "was not made by this service for this query"


def page_size(asked: int, default: int, most: int) -> int:
    """Returns how many to list: 0 asks for the default, and `most` is the limit."""
    return min(asked or default, most)


def encode(request: Message, *position: str | int) -> str:
    """Returns the token for what comes after `position` in the answer to `request`. Its strings must hold no NUL."""
    packed = _SEPARATOR.join(map(str, position)).encode()
    return base64.urlsafe_b64encode(_digest(request, packed) + packed).decode().rstrip("=")


def decode(request: Message, token: str, *kinds: Callable[[str], Any]) -> list[Any] | None:
    """Returns the position in `token`, parsed by `kinds`; None for an empty token. Raises PAGE_TOKEN_INVALID.

    A kind is `str`, `int` (of 64 bits), or any parser that raises ValueError or OverflowError for malformed text.
    """
    if not token:
        return None
    try:
        sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        if base64.urlsafe_b64encode(sealed).decode().rstrip("=") != token:
            raise ValueError(_PROBLEM)  # Another spelling of the same bytes: the token was altered.
        digest, packed = sealed[:_DIGEST_BYTES], sealed[_DIGEST_BYTES:]
        if digest != _digest(request, packed):
            raise ValueError(_PROBLEM)
        # A position of another shape comes from another release of this service, or was made up.
        position = [kind(part) for kind, part in zip(kinds, packed.decode().split(_SEPARATOR), strict=True)]
        if any(isinstance(part, int) and part.bit_length() > _INTEGER_BITS for part in position):
            raise ValueError(_PROBLEM)
        return position
    except (ValueError, OverflowError):
        raise AgentShellError(
            error_pb2.ERROR_REASON_PAGE_TOKEN_INVALID,
            f"page_token {_PROBLEM}; repeat the query that gave it, or leave it empty to start at the first page",
            violations=[("page_token", _PROBLEM)],
        ) from None


def _digest(request: Message, packed: bytes) -> bytes:
    """Detects a token that was altered or is for another query; not a secret, since a token gives access to nothing."""
    query = type(request)()
    query.CopyFrom(request)
    for field in _POSITIONS.intersection(query.DESCRIPTOR.fields_by_name):
        query.ClearField(field)
    named = f"{call.tenant()} {request.DESCRIPTOR.full_name} ".encode() + query.SerializeToString(deterministic=True)
    return hashlib.blake2b(packed, digest_size=_DIGEST_BYTES, key=hashlib.sha256(named).digest()).digest()
