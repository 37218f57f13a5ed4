"""Answers that a tenant wants to reuse, for as long as it says."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from agentshell.db.database import Database
from agentshell.provider.pricing import CURRENCY_CODE
from kfm.content.v1.content_pb2 import Money, Usage
from kfm.provider.v1 import provider_service_pb2 as pb

# No older than the caller accepts, nor than the caller that stored it allowed.
_FIND = """
SELECT response FROM provider.cached_answer
WHERE tenant_id = %s AND digest = %s AND expire_time > now() AND create_time > now() - %s
"""

# Each new answer deletes a few expired ones, so that the table needs no sweeper.
_KEEP = """
WITH swept AS (
    DELETE FROM provider.cached_answer WHERE (tenant_id, digest) IN (
        SELECT tenant_id, digest FROM provider.cached_answer
        WHERE expire_time <= now() AND (tenant_id, digest) <> (%(tenant)s, %(digest)s)
        ORDER BY expire_time LIMIT 8 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO provider.cached_answer (tenant_id, digest, response, expire_time)
VALUES (%(tenant)s, %(digest)s, %(response)s, now() + %(ttl)s)
ON CONFLICT (tenant_id, digest) DO UPDATE
SET response = excluded.response, create_time = now(), expire_time = excluded.expire_time
"""


class ResponseCache:
    """Answers by tenant and by the whole request. Raises DATABASE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, tenant_id: str, digest: bytes, ttl: timedelta) -> pb.GenerateResponse | None:
        """Returns an answer that is no older than `ttl`; None: there is none. Its usage shows a cost of 0."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(_FIND, (tenant_id, digest, ttl))).fetchone()
        if row is None:
            return None
        answer = pb.GenerateResponse.FromString(bytes(row[0]))
        answer.usage.CopyFrom(Usage(cached_answer_count=1, cost=Money(amount_micros=0, currency_code=CURRENCY_CODE)))
        return answer

    async def keep(self, tenant_id: str, digest: bytes, ttl: timedelta, answer: pb.GenerateResponse) -> None:
        """Keeps an answer for `ttl`."""
        values = {"tenant": tenant_id, "digest": digest, "ttl": ttl, "response": answer.SerializeToString()}
        async with self._database.connection() as connection:
            await connection.execute(_KEEP, values)


def digest(generation: pb.Generation, candidates: object) -> bytes:
    """Returns the key of an answer: the request, and the candidates that it would go to now."""
    asked = generation.SerializeToString(deterministic=True)
    return hashlib.sha256(repr(candidates).encode() + b"\0" + asked).digest()
