"""The histories of sessions, in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from agentshell.db import binary
from agentshell.db.database import Connection, Database
from agentshell.db.shares import Shares
from agentshell.memory.stores import once as effects
from agentshell.memory.stores import wall
from agentshell.memory.stores.store import MessagePage, Once
from kfm.content.v1.content_pb2 import Message
from kfm.memory.v1.memory_service_pb2 import AppendMessagesResponse

_APPEND = "SELECT memory.append($1::text, $2::text, $3::text, $4::bytea[], $5::text, $6::bytea, $7::text)"
_NEWEST = """
    SELECT message, position, older
    FROM memory.newest($1::text, $2::text, $3::bigint, $4::bigint, $5::bigint, $6::text)"""
_CONNECTIONS = 4  # An append waits for the disk and for those who forget, and a page may be large.
_NO_POSITION = 2**63 - 1  # After all messages.
_TRUE = b"\x01"
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
    """Which session under its id is meant, whose it is, and up to which position its next summary goes."""

    incarnation: UUID
    user_id: str
    position: int


class History:
    """Appends to and lists histories. Positions count from 1, without a gap."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._append = database.statements(_APPEND, _CONNECTIONS + 1)
        self._appending = Shares(_CONNECTIONS)  # So that no tenant takes all of them.
        self._newest = database.statements(_NEWEST, _CONNECTIONS)

    async def append(
        self, tenant_id: str, session_id: str, messages: Sequence[Message], user_id: str, once: Once
    ) -> AppendMessagesResponse:
        """Adds messages to the end of a session's history, in order, even if others append at the same time.

        The session belongs to the first `user_id` that is not empty.
        """
        async with self._appending.of(tenant_id):
            result = await self._append.run(
                [
                    *_texts(tenant_id, session_id, user_id),
                    binary.blobs([message.SerializeToString() for message in messages]),
                    *_texts(once.request_id),
                    once.digest,
                    *_texts(wall.caller()),
                ]
            )
        return effects.repeated(once, AppendMessagesResponse, result.get_value(0, 0))

    async def list(
        self, tenant_id: str, session_id: str, before: int | None, limit: int, limit_bytes: int
    ) -> MessagePage:
        """Returns the newest messages before a position (None: of all); at least one if there is one."""
        numbers = [binary.bigint(number) for number in (before or _NO_POSITION, limit, limit_bytes)]
        result = await self._newest.run([*_texts(tenant_id, session_id), *numbers, *_texts(wall.caller())])
        if not result.ntuples:
            return MessagePage([], 0, has_more=False)
        messages = [Message.FromString(result.get_value(row, 0) or b"") for row in range(result.ntuples)]
        first_position, older = result.get_value(0, 1) or b"", result.get_value(0, 2)
        return MessagePage(messages, int.from_bytes(first_position), has_more=older == _TRUE)

    async def range(
        self, tenant_id: str, session_id: str, first: int, last: int, limit_bytes: int
    ) -> Sequence[Message]:
        """Returns the messages at these positions, oldest first, as many as fit; at least one if there is one."""
        parameters = {"tenant": tenant_id, "session": session_id, "first": first, "last": last}
        async with wall.reading(self._database) as connection:
            cursor = await connection.execute(_RANGE, {**parameters, "limit_bytes": limit_bytes})
            return [Message.FromString(message) for (message,) in await cursor.fetchall()]

    async def plan_summary(self, tenant_id: str, session_id: str, covered: int, until: int) -> SummaryPlan | None:
        """Returns how far the summary after `covered` goes: the first caller's `until` holds for all callers.

        Returns None if there is no such session.
        """
        parameters = {"tenant": tenant_id, "session": session_id, "covered": covered, "until": until}
        async with wall.reading(self._database) as connection:
            row = await (await connection.execute(_PLAN_SUMMARY, parameters)).fetchone()
        return SummaryPlan(*row) if row else None

    @staticmethod
    async def lock(connection: Connection, tenant_id: str, session_id: str, incarnation: UUID) -> bool:
        """Returns whether the session is still the same one, and keeps it so until the transaction ends."""
        cursor = await connection.execute(_LOCK, (tenant_id, session_id, incarnation))
        return await cursor.fetchone() is not None


def _texts(*texts: str | None) -> list[bytes | None]:
    return [None if text is None else text.encode() for text in texts]
