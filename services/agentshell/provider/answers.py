"""What was answered to which request: a repeat within 24 hours gets the first answer and calls no vendor."""

from __future__ import annotations

import hashlib

from agentshell.db.database import Database
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

_KEPT = "interval '24 hours'"

# An answer that is too old is as if it were not there.
_FIND = f"""
SELECT request_digest, response FROM provider.answers
WHERE tenant_id = %s AND request_id = %s AND create_time > now() - {_KEPT}
"""  # noqa: S608 - a constant

# The first answer stays: of two calls that ran at once under one id, the later finds the earlier's. What is too old
# goes, a few at each new answer, so that the table needs no sweeper.
_KEEP = f"""
WITH swept AS (
    DELETE FROM provider.answers WHERE (tenant_id, request_id) IN (
        SELECT tenant_id, request_id FROM provider.answers
        WHERE create_time <= now() - {_KEPT} AND (tenant_id, request_id) <> (%(tenant)s, %(request)s)
        ORDER BY create_time LIMIT 8 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO provider.answers AS a (tenant_id, request_id, request_digest, response)
VALUES (%(tenant)s, %(request)s, %(digest)s, %(response)s)
ON CONFLICT (tenant_id, request_id) DO UPDATE
SET request_digest = excluded.request_digest, response = excluded.response, create_time = now()
WHERE a.create_time <= now() - {_KEPT}
"""  # noqa: S608 - a constant


class Answers:
    """The answers of the last 24 hours, of all tenants. Raises DATABASE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        """Makes the schema, or brings it up to date."""
        await self._database.migrate("provider", "agentshell.provider.migrations")

    async def find(self, tenant_id: str, request_id: str, generation: pb.Generation) -> pb.GenerateResponse | None:
        """Returns the first answer; None: there is none. Raises REQUEST_ID_REUSED where another thing was asked."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(_FIND, (tenant_id, request_id))
            row = await cursor.fetchone()
        if row is None:
            return None
        digest, response = row
        if bytes(digest) != _digest(generation):
            raise AgentShellError(
                error_pb2.ERROR_REASON_REQUEST_ID_REUSED,
                f"request_id {request_id!r} was used within 24 hours for another request: use a new one",
                metadata={"request_id": request_id},
            )
        return pb.GenerateResponse.FromString(bytes(response))

    async def keep(
        self, tenant_id: str, request_id: str, generation: pb.Generation, response: pb.GenerateResponse
    ) -> pb.GenerateResponse:
        """Keeps an answer durably and returns the first one, which is this or one that came meanwhile."""
        values = {
            "tenant": tenant_id,
            "request": request_id,
            "digest": _digest(generation),
            "response": response.SerializeToString(),
        }
        async with self._database.connection() as connection:
            cursor = await connection.execute(_KEEP, values)
            if cursor.rowcount == 1:
                return response
        return await self.find(tenant_id, request_id, generation) or response


def _digest(generation: pb.Generation) -> bytes:
    return hashlib.sha256(generation.SerializeToString(deterministic=True)).digest()
