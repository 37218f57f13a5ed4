"""Ids: ULIDs for what happens once, digests for what may be decided again."""

from __future__ import annotations

import hashlib
import os
import time

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]  # Ten bits at a time.


def ulid() -> str:
    """Returns a new ULID: 26 characters, sortable by the millisecond in which it was made."""
    return _encode((time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10)))


def digest(*parts: str | int) -> str:
    """Returns an id that is always the same for the same parts: 26 characters, in the form of a ULID.

    A decision that is written twice is therefore one decision.
    """
    packed = "\0".join(map(str, parts))
    return _encode(int.from_bytes(hashlib.sha256(packed.encode()).digest()[:16]))


def record_id(text: str) -> bytes:
    """Returns the 16 bytes that name a log record for the event id `text`."""
    return hashlib.sha256(text.encode()).digest()[:16]


def _encode(value: int) -> str:
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(120, -1, -10)])
