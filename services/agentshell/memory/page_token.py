"""Where a list goes on: opaque to callers, and good for the query that it was made for alone."""

from __future__ import annotations

import base64
import hashlib

_DIGEST_BYTES = 12


def encode(query: bytes, position: str) -> str:
    """Returns the token that goes on at `position` of the list that `query` asks for."""
    packed = position.encode()
    return base64.urlsafe_b64encode(_digest(query, packed) + packed).decode()


def decode(query: bytes, token: str) -> str:
    """Returns the position. Raises ValueError for a token that `encode` did not make, or not for this query."""
    try:
        packed = base64.b64decode(token, altchars=b"-_", validate=True)
        position = packed[_DIGEST_BYTES:]
        if packed[:_DIGEST_BYTES] == _digest(query, position):
            return position.decode()
    except ValueError:  # Neither Base64 nor UTF-8.
        pass
    raise ValueError("the token is not one of this list")


def _digest(query: bytes, position: bytes) -> bytes:
    return hashlib.blake2b(position, digest_size=_DIGEST_BYTES, key=hashlib.sha256(query).digest()).digest()
