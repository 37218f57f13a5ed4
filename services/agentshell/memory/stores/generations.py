"""Tells whether anything in places has changed, by their generations, which every change advances (change.py)."""

# ruff: noqa: S608 - statements are built from literals alone: their type is LiteralString

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import LiteralString, NamedTuple

from agentshell.db import binary
from agentshell.db.database import Database


class State(NamedTuple):
    """A digest of places' generations, and the time at which they were read, in seconds since 1970.

    The time is Postgres', by whose clock records expire.
    """

    digest: bytes
    time: float


def columns(places: LiteralString) -> LiteralString:
    """Returns the two columns that `state` takes, for a `text[]` of places' keys."""
    return f"""(
            SELECT array_agg(coalesce(generation, 0) ORDER BY number)
            FROM unnest({places}) WITH ORDINALITY AS asked (place, number) LEFT JOIN memory.generations USING (place)
        ), extract(epoch FROM now())::float8"""


def state(generations: bytes | None, time: bytes | None) -> State:
    """Returns the state in the two columns, which are in binary format."""
    return State(hashlib.sha256(generations or b"").digest(), binary.float_of(time or b""))


class Generations:
    """Reads generations by a statement of their own."""

    def __init__(self, database: Database) -> None:
        self._statement = database.statement("SELECT " + columns("$1::text[]"))

    async def state(self, keys: Sequence[str]) -> State:
        """Returns the state of places by their keys."""
        result = await self._statement.run([binary.texts(keys)])
        return state(result.get_value(0, 0), result.get_value(0, 1))
