"""The histories of sessions, in Postgres."""

from __future__ import annotations

from collections.abc import Sequence

from agentshell.db.database import Connection, Database
from agentshell.memory.stores import once as effects
from agentshell.memory.stores.store import MessagePage, Once
from kfm.content.v1.content_pb2 import Message
from kfm.memory.v1.memory_service_pb2 import AppendMessagesResponse

# Locks the session's row until the transaction ends: one appends at a time.
_COUNT = """
    INSERT INTO memory.sessions AS session VALUES (%(tenant)s, %(session)s, %(count)s)
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET message_count = session.message_count + excluded.message_count
    RETURNING message_count"""
_APPEND = """
    INSERT INTO memory.messages
    SELECT %(tenant)s, %(session)s, %(last)s - %(count)s + number, message
    FROM unnest(%(messages)s::bytea[]) WITH ORDINALITY AS appended (message, number)"""
# Sizes are known without reading the messages, so a page of pictures costs no more than it brings.
_LIST = """
    SELECT message, position, older FROM (
        SELECT message, position, row_number() OVER newest AS number,
            sum(octet_length(message)) OVER newest AS total_bytes, lead(position) OVER newest IS NOT NULL AS older
        FROM (
            SELECT message, position FROM memory.messages
            WHERE tenant_id = %(tenant)s AND session_id = %(session)s
                AND (%(before)s::bigint IS NULL OR position < %(before)s)
            ORDER BY position DESC LIMIT %(limit)s + 1
        ) candidates
        WINDOW newest AS (ORDER BY position DESC)
    ) sized
    WHERE number = 1 OR (number <= %(limit)s AND total_bytes <= %(limit_bytes)s)
    ORDER BY position"""
_FORGET = """
    WITH session AS (
        DELETE FROM memory.sessions WHERE tenant_id = %s AND session_id = %s RETURNING message_count
    )
    SELECT coalesce(sum(message_count), 0)::bigint FROM session"""


class History:
    """Appends to, lists and forgets histories. Positions count from 1, without a gap."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(
        self, tenant_id: str, session_id: str, messages: Sequence[Message], once: Once
    ) -> AppendMessagesResponse:
        """See `Store.append_messages`."""

        async def effect(connection: Connection) -> AppendMessagesResponse:
            parameters = {"tenant": tenant_id, "session": session_id, "count": len(messages)}
            cursor = await connection.execute(_COUNT, parameters)
            (last,) = await cursor.fetchone() or (0,)
            serialized = [message.SerializeToString() for message in messages]
            await connection.execute(_APPEND, {**parameters, "last": last, "messages": serialized})
            return AppendMessagesResponse(message_count=last)

        return await effects.run(self._database, tenant_id, once, AppendMessagesResponse, effect)

    async def list(
        self, tenant_id: str, session_id: str, before: int | None, limit: int, limit_bytes: int
    ) -> MessagePage:
        """See `Store.list_messages`."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(
                _LIST,
                {
                    "tenant": tenant_id,
                    "session": session_id,
                    "before": before,
                    "limit": limit,
                    "limit_bytes": limit_bytes,
                },
            )
            rows = await cursor.fetchall()
        if not rows:
            return MessagePage([], 0, has_more=False)
        _, first_position, has_more = rows[0]
        return MessagePage([Message.FromString(message) for message, _, _ in rows], first_position, has_more)

    @staticmethod
    async def forget(connection: Connection, tenant_id: str, session_id: str) -> int:
        """Forgets a history within the connection's transaction, and returns how many messages it had."""
        cursor = await connection.execute(_FORGET, (tenant_id, session_id))
        (count,) = await cursor.fetchone() or (0,)
        return int(count)
