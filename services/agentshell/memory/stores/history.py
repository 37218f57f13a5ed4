"""The histories of sessions, in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from agentshell.db.database import Connection, Database
from agentshell.memory.stores import once as effects
from agentshell.memory.stores import wall
from agentshell.memory.stores.store import MessagePage, Once, Place
from kfm.content.v1.content_pb2 import Message
from kfm.memory.v1.memory_service_pb2 import AppendMessagesResponse

# Locks the session's row until the transaction ends: one appends at a time.
_COUNT = """
    INSERT INTO memory.sessions AS session (tenant_id, session_id, message_count, user_id)
    VALUES (%(tenant)s, %(session)s, %(count)s, %(user)s)
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET message_count = session.message_count + excluded.message_count,
        user_id = CASE session.user_id WHEN '' THEN excluded.user_id ELSE session.user_id END
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
_RANGE = """
    SELECT message FROM (
        SELECT message, position, sum(octet_length(message)) OVER (ORDER BY position) AS total_bytes
        FROM memory.messages
        WHERE tenant_id = %(tenant)s AND session_id = %(session)s AND position BETWEEN %(first)s AND %(last)s
    ) sized
    WHERE position = %(first)s OR total_bytes <= %(limit_bytes)s
    ORDER BY position"""
_PLAN_SUMMARY = """
    UPDATE memory.sessions SET summary_position =
        CASE WHEN summary_position > %(covered)s THEN summary_position ELSE %(until)s END
    WHERE tenant_id = %(tenant)s AND session_id = %(session)s
    RETURNING incarnation, user_id, summary_position"""
_LOCK = """
    SELECT FROM memory.sessions WHERE tenant_id = %s AND session_id = %s AND incarnation = %s FOR KEY SHARE"""


class SummaryPlan(NamedTuple):
    """To which position a session's next summary goes; whose session it is; and which one of its name."""

    incarnation: UUID
    user_id: str
    position: int


class History:
    """Appends to and lists histories. Positions count from 1, without a gap."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(
        self, tenant_id: str, session_id: str, messages: Sequence[Message], user_id: str, once: Once
    ) -> AppendMessagesResponse:
        """Adds messages to the end of a session's history, in order, whoever else appends.

        It is the conversation of the first `user_id` that is not empty.
        """

        async def effect(connection: Connection) -> AppendMessagesResponse:
            parameters = {"tenant": tenant_id, "session": session_id, "count": len(messages), "user": user_id}
            cursor = await connection.execute(_COUNT, parameters)
            (last,) = await cursor.fetchone() or (0,)
            serialized = [message.SerializeToString() for message in messages]
            await connection.execute(_APPEND, {**parameters, "last": last, "messages": serialized})
            return AppendMessagesResponse(message_count=last)

        return await effects.run(
            self._database, Place(tenant_id, f"session/{session_id}"), once, AppendMessagesResponse, effect
        )

    async def list(
        self, tenant_id: str, session_id: str, before: int | None, limit: int, limit_bytes: int
    ) -> MessagePage:
        """Returns the newest messages before a position (None: of all); at least one where there is one."""
        async with wall.reading(self._database) as connection:
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

    async def range(
        self, tenant_id: str, session_id: str, first: int, last: int, limit_bytes: int
    ) -> Sequence[Message]:
        """Returns the messages of these positions, oldest first, as many as fit; at least one where there is one."""
        parameters = {"tenant": tenant_id, "session": session_id, "first": first, "last": last}
        async with wall.reading(self._database) as connection:
            cursor = await connection.execute(_RANGE, {**parameters, "limit_bytes": limit_bytes})
            return [Message.FromString(message) for (message,) in await cursor.fetchall()]

    async def plan_summary(self, tenant_id: str, session_id: str, covered: int, until: int) -> SummaryPlan | None:
        """Returns how far the summary after the one that covers so much goes: for all who ask, as the first one said.

        None: there is no such session.
        """
        parameters = {"tenant": tenant_id, "session": session_id, "covered": covered, "until": until}
        async with wall.reading(self._database) as connection:
            row = await (await connection.execute(_PLAN_SUMMARY, parameters)).fetchone()
        return SummaryPlan(*row) if row else None

    @staticmethod
    async def lock(connection: Connection, tenant_id: str, session_id: str, incarnation: UUID) -> bool:
        """Returns whether the session is still the same, and keeps it so until the connection's transaction ends."""
        cursor = await connection.execute(_LOCK, (tenant_id, session_id, incarnation))
        return await cursor.fetchone() is not None
