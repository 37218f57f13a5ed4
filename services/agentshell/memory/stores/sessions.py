"""Whole sessions: whose they are, and copying, restoring, counting and forgetting their histories."""

# ruff: noqa: S608 - statements are built from literals alone: their type is LiteralString

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from agentshell.db.database import Connection
from agentshell.memory.stores.store import Scope
from agentshell.mesh.errors import invalid
from kfm.content.v1.content_pb2 import Message
from kfm.memory.v1.memory_service_pb2 import StoredMessage

PREFIX = "session/"

_OF_USER = "SELECT session_id FROM memory.sessions WHERE tenant_id = %s AND user_id = %s AND user_id <> ''"
_FORGET = """
    WITH gone AS (DELETE FROM memory.sessions WHERE tenant_id = %s AND session_id = ANY (%s) RETURNING message_count)
    SELECT coalesce(sum(message_count), 0)::bigint FROM gone"""
_COUNT = """
    SELECT session_id, message_count FROM memory.sessions
    WHERE tenant_id = %(tenant)s AND session_id > %(after)s AND (%(session)s::text IS NULL OR session_id = %(session)s)
    ORDER BY session_id LIMIT %(limit)s"""


def _copy(condition: LiteralString) -> LiteralString:
    return f"""
    SELECT session_id, user_id, position, message FROM (
        SELECT *, row_number() OVER by_place AS number, sum(octet_length(message)) OVER by_place AS total_bytes
        FROM (
            SELECT session_id, user_id, position, message FROM memory.messages
            JOIN memory.sessions USING (tenant_id, session_id)
            WHERE tenant_id = %(tenant)s AND (session_id, position) > (%(after_session)s, %(after_position)s)
                {condition}
            ORDER BY session_id, position LIMIT %(limit)s
        ) found
        WINDOW by_place AS (ORDER BY session_id, position)
    ) sized
    WHERE number = 1 OR total_bytes <= %(limit_bytes)s
    ORDER BY session_id, position"""


_COPY_ALL, _COPY_SOME = _copy(""), _copy("AND session_id = ANY (%(sessions)s)")

# Locks the session's row until the transaction ends, as an append does.
_BEGIN = """
    INSERT INTO memory.sessions AS session (tenant_id, session_id, message_count, user_id)
    VALUES (%(tenant)s, %(session)s, 0, %(user)s)
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET
        user_id = CASE session.user_id WHEN '' THEN excluded.user_id ELSE session.user_id END
    RETURNING message_count"""
_RESTORE = """
    INSERT INTO memory.messages (tenant_id, session_id, position, message)
    SELECT %(tenant)s, %(session)s, %(count)s + number, message
    FROM unnest(%(messages)s::bytea[]) WITH ORDINALITY AS restored (message, number)"""
_END = """
    UPDATE memory.sessions SET message_count = message_count + %(added)s
    WHERE tenant_id = %(tenant)s AND session_id = %(session)s"""


async def of_user(connection: Connection, tenant_id: str, user_id: str) -> list[str]:
    """Returns the ids of a user's sessions."""
    cursor = await connection.execute(_OF_USER, (tenant_id, user_id))
    return [session_id for (session_id,) in await cursor.fetchall()]


async def forget(connection: Connection, tenant_id: str, session_ids: Sequence[str]) -> int:
    """Forgets histories within the connection's transaction, and returns how many messages they had."""
    cursor = await connection.execute(_FORGET, (tenant_id, list(session_ids)))
    (count,) = await cursor.fetchone() or (0,)
    return int(count)


async def count(
    connection: Connection, tenant_id: str, session_id: str | None, after: str, limit: int
) -> dict[str, int]:
    """Returns how many messages sessions have: those after the id `after`, or `session_id` alone."""
    parameters = {"tenant": tenant_id, "session": session_id, "after": after, "limit": limit}
    return dict(await (await connection.execute(_COUNT, parameters)).fetchall())


async def copy(
    connection: Connection, scope: Scope, after: tuple[str, int], limit: int, limit_bytes: int
) -> list[StoredMessage]:
    """Returns the messages after a session and a position, in that order; at least one if there is one."""
    names = [name for name in scope.namespaces or () if name.startswith(PREFIX)]
    parameters = {
        "tenant": scope.tenant_id,
        "sessions": [name.removeprefix(PREFIX) for name in names],
        "after_session": after[0],
        "after_position": after[1],
        "limit": limit,
        "limit_bytes": limit_bytes,
    }
    cursor = await connection.execute(_COPY_ALL if scope.namespaces is None else _COPY_SOME, parameters)
    return [
        StoredMessage(session_id=session_id, user_id=user_id, position=position, message=Message.FromString(message))
        for session_id, user_id, position, message in await cursor.fetchall()
    ]


async def restore(connection: Connection, tenant_id: str, session_id: str, messages: Sequence[StoredMessage]) -> int:
    """Adds, in order, the messages that the history does not have yet, and returns how many it added.

    Raises INVALID_REQUEST if one before them is missing.
    """
    parameters = {"tenant": tenant_id, "session": session_id, "user": messages[0].user_id}
    (had,) = await (await connection.execute(_BEGIN, parameters)).fetchone() or (0,)
    added: list[bytes] = []
    for message in messages:
        if message.position > had + len(added) + 1:
            raise invalid(
                "items.message.position",
                f"session {session_id!r} has {had + len(added)} messages, and {message.position} comes next: "
                "send the messages that Export returned, in their order",
            )
        if message.position == had + len(added) + 1:
            added.append(message.message.SerializeToString())
    await connection.execute(_RESTORE, {**parameters, "count": had, "messages": added})
    await connection.execute(_END, {**parameters, "added": len(added)})
    return len(added)
