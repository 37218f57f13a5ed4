"""Tool results, by request and attempt: a repeat within 24 hours gets the first result."""

from __future__ import annotations

from agentshell.db.database import Database
from agentshell.tool.attempt import Attempt
from kfm.content.v1.content_pb2 import ToolResult

_KEPT = "interval '24 hours'"

# The first result stays. No row comes back if the id belongs to another call, or a later attempt has been seen. Rows
# that are too old count as absent, and each call deletes a few of them, so that the table needs no sweeper.
_SETTLE = f"""
WITH swept AS (
    DELETE FROM tool.results WHERE (tenant_id, request_id) IN (
        SELECT tenant_id, request_id FROM tool.results
        WHERE use_time <= now() - {_KEPT} AND (tenant_id, request_id) <> ($1::text, $2::text)
        ORDER BY use_time LIMIT 8 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO tool.results AS r (tenant_id, request_id, request_digest, attempt, result)
VALUES ($1::text, $2::text, $3::bytea, $4::integer, $5::bytea)
ON CONFLICT (tenant_id, request_id) DO UPDATE
SET request_digest = excluded.request_digest, attempt = excluded.attempt, use_time = now(),
    result = coalesce(CASE WHEN r.use_time > now() - {_KEPT} THEN r.result END, excluded.result)
WHERE r.use_time <= now() - {_KEPT} OR (r.request_digest = excluded.request_digest AND r.attempt <= excluded.attempt)
RETURNING result
"""  # noqa: S608 - a constant
_CONNECTIONS = 4  # Each result waits for the disk.

_FIND = "SELECT request_digest FROM tool.results WHERE tenant_id = %s AND request_id = %s"


class Results:
    """All tenants' results of the last 24 hours. Raises DATABASE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._settling = database.statements(_SETTLE, _CONNECTIONS)

    async def open(self) -> None:
        """Makes the schema, or brings it up to date."""
        await self._database.migrate("tool", "agentshell.tool.migrations")

    async def claim(self, attempt: Attempt) -> ToolResult | None:
        """Returns the first result; None: there is none yet, and lower attempts are refused from now on.

        Raises REQUEST_ID_REUSED and FENCED.
        """
        return await self._settle(attempt, None)

    async def keep(self, attempt: Attempt, result: ToolResult) -> ToolResult:
        """Keeps a result durably and returns the first one: this one, or an earlier one.

        Raises REQUEST_ID_REUSED and FENCED.
        """
        return await self._settle(attempt, result) or result

    async def _settle(self, attempt: Attempt, result: ToolResult | None) -> ToolResult | None:
        key = (attempt.tenant_id, attempt.request_id)
        number = attempt.number.to_bytes(4)
        made = None if result is None else result.SerializeToString()
        settled = await self._settling.run([*(name.encode() for name in key), attempt.digest, number, made])
        if settled.ntuples:
            first = settled.get_value(0, 0)
            return None if first is None else ToolResult.FromString(first)
        async with self._database.connection() as connection:
            seen = await (await connection.execute(_FIND, key)).fetchone()
        raise attempt.reused() if seen and bytes(seen[0]) != attempt.digest else attempt.fenced()
