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

# Whoever repeats an id while the first is under way waits here for its end.
_CLAIM = """
    INSERT INTO memory.requests AS request (tenant_id, request_id, digest) VALUES (%s, %s, %s)
    ON CONFLICT (tenant_id, request_id) DO UPDATE SET digest = excluded.digest, create_time = now()
    WHERE request.create_time < now() - interval '24 hours'
    RETURNING true"""
_READ = "SELECT digest, answer FROM memory.requests WHERE tenant_id = %s AND request_id = %s"
_ANSWER = "UPDATE memory.requests SET answer = %s WHERE tenant_id = %s AND request_id = %s"
# Each new request takes a few old ones away, so the table stays as large as a day. An hour later than they end, so that
# none goes between a claim and its reading.
_SWEEP = """
    DELETE FROM memory.requests WHERE (tenant_id, request_id) IN (
        SELECT tenant_id, request_id FROM memory.requests WHERE create_time < now() - interval '25 hours'
        ORDER BY create_time LIMIT 4 FOR UPDATE SKIP LOCKED)"""


async def run(
    database: Database,
    place: Place,
    once: Once | None,
    answer: type[Answer],
    effect: Callable[[Connection], Awaitable[Answer]],
) -> Answer:
    """Runs `effect`, which changes `place`, in a transaction and returns its answer; a repeated request's first answer.

    An effect that fails is not remembered. Raises REQUEST_ID_REUSED where the id was used for another request.
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
    """As `run`, in the connection's transaction."""
    if once is None:
        return await effect(connection)
    key = (tenant_id, once.request_id)
    if await (await connection.execute(_CLAIM, (*key, once.digest))).fetchone():
        made = await effect(connection)
        await connection.execute(_ANSWER, (made.SerializeToString(), *key))
        await connection.execute(_SWEEP)
        return made
    row = await (await connection.execute(_READ, key)).fetchone()
    if row is None or row[0] != once.digest:
        raise request_id_reused(once.request_id)
    return answer.FromString(row[1])
