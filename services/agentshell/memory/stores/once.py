"""Effects that happen once: the answer to a request is kept with its effect, in one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from agentshell.db.database import Connection, Database
from agentshell.memory.stores.change import change
from agentshell.memory.stores.store import Once, Place
from agentshell.mesh.errors import request_id_reused

Answer = TypeVar("Answer", bound=Message)

_CLAIM = "SELECT is_first, first_answer FROM memory.claim(%s, %s, %s)"
_KEEP = "SELECT memory.keep_answer(%s, %s, %s)"
# An hour after they expire, so that none disappears between a claim and its reading.
_SWEEP = """
    DELETE FROM memory.requests WHERE (tenant_id, request_id) IN (
        SELECT tenant_id, request_id FROM memory.requests WHERE create_time < now() - interval '25 hours'
        ORDER BY create_time LIMIT %s FOR UPDATE SKIP LOCKED)"""
_SWEPT_AT_ONCE = 1_000


async def run(
    database: Database,
    place: Place,
    once: Once | None,
    answer: type[Answer],
    effect: Callable[[Connection], Awaitable[Answer]],
) -> Answer:
    """Runs `effect`, which changes `place`, in a transaction; returns its answer, or the first one to a repeat.

    An effect that fails is not remembered. Raises REQUEST_ID_REUSED if the id was used for another request.
    """
    async with change(database, place) as connection:
        return await within(connection, place.tenant_id, once, answer, effect)


async def within(
    connection: Connection,
    tenant_id: str,
    once: Once | None,
    answer: type[Answer],
    effect: Callable[[Connection], Awaitable[Answer]],
) -> Answer:
    """Like `run`, in the connection's transaction."""
    if once is None:
        return await effect(connection)
    key = (tenant_id, once.request_id)
    is_first, first = await (await connection.execute(_CLAIM, (*key, once.digest))).fetchone() or (False, None)
    if is_first:
        made = await effect(connection)
        await connection.execute(_KEEP, (*key, made.SerializeToString()))
        return made
    return repeated(once, answer, first)


def repeated(once: Once, answer: type[Answer], first: bytes | None) -> Answer:
    """Decodes the first answer, as the schema's functions return it. Raises REQUEST_ID_REUSED for None."""
    if first is None:
        raise request_id_reused(once.request_id)
    return answer.FromString(first)


async def sweep(database: Database) -> None:
    """Removes answers that are no longer given."""
    while True:
        async with database.connection() as connection:
            if (await connection.execute(_SWEEP, [_SWEPT_AT_ONCE])).rowcount < _SWEPT_AT_ONCE:
                return
