"""Keeps the answer to each request: a repeat within 24 hours gets the first answer and calls no vendor.

A process claims a request while it is under way, and a repeat elsewhere waits for the outcome. A claim holds for as
long as its process lives: each process shows that with an advisory lock, which ends with its connection.

A client gets its answer once that is on disk. A service of the mesh gets it at once: it stores the answer itself before
it acts on it, so the answer is lost only if both processes end first.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

import structlog

from agentshell.db.binary import bigint
from agentshell.db.database import Connection, Database
from agentshell.mesh.errors import AgentShellError, request_id_reused
from agentshell.provider.runs import Request
from kfm.provider.v1 import provider_service_pb2 as pb

_KEPT = "interval '24 hours'"
_POLL_SECONDS = 0.1
_KEEPERS = 4  # Answers that are stored at once: each waits for the disk.
_MAX_MEANWHILE = 256  # Answers being stored without anybody waiting. Beyond this, the caller waits.
_CLOSE_SECONDS = 5.0

# A claim outlives its answer, so that a caller that looked just before the answer was stored cannot claim the request.
# An expired answer counts as absent. Nobody else can take the lock of a live process.
_CLAIM = f"""
WITH answered AS (
    SELECT request_digest, response FROM provider.answers
    WHERE tenant_id = $1::text AND request_id = $2::text AND create_time > now() - {_KEPT}
), claimed AS (
    INSERT INTO provider.claim AS c (tenant_id, request_id, request_digest, owner)
    SELECT $1::text, $2::text, $3::bytea, $4::bigint WHERE NOT EXISTS (SELECT FROM answered)
    ON CONFLICT (tenant_id, request_id) DO UPDATE
    SET request_digest = excluded.request_digest, owner = excluded.owner, create_time = now()
    WHERE c.owner = excluded.owner OR c.create_time <= now() - {_KEPT} OR pg_try_advisory_xact_lock_shared(c.owner)
    RETURNING 1
)
SELECT (SELECT request_digest FROM answered), (SELECT response FROM answered), EXISTS (SELECT FROM claimed),
    (SELECT request_digest FROM provider.claim WHERE tenant_id = $1::text AND request_id = $2::text),
    NOT pg_try_advisory_xact_lock_shared($4::bigint)
"""  # noqa: S608 - a constant

# The first answer stays: if two calls run at once under one id, the later one finds the earlier one's answer. Each new
# answer deletes a few expired rows, so that the tables need no sweeper.
_KEEP = f"""
WITH swept AS (
    DELETE FROM provider.answers WHERE (tenant_id, request_id) IN (
        SELECT tenant_id, request_id FROM provider.answers
        WHERE create_time <= now() - {_KEPT} AND (tenant_id, request_id) <> ($1::text, $2::text)
        ORDER BY create_time LIMIT 8 FOR UPDATE SKIP LOCKED
    )
), released AS (
    DELETE FROM provider.claim WHERE (tenant_id, request_id) IN (
        SELECT tenant_id, request_id FROM provider.claim WHERE create_time <= now() - interval '1 hour'
        ORDER BY create_time LIMIT 8 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO provider.answers AS a (tenant_id, request_id, request_digest, response)
SELECT $1::text, $2::text, $3::bytea, $4::bytea
ON CONFLICT (tenant_id, request_id) DO UPDATE
SET request_digest = excluded.request_digest, response = excluded.response, create_time = now()
WHERE a.create_time <= now() - {_KEPT}
"""  # noqa: S608 - a constant

# Reaches the disk with the next commit that waits for it, such as the one in which the caller stores the answer.
_KEEP_MEANWHILE = _KEEP.replace("$4::bytea\n", "$4::bytea FROM set_config('synchronous_commit', 'off', true)\n")

_TRUE = b"\x01"
_RELEASE = "DELETE FROM provider.claim WHERE tenant_id = %s AND request_id = %s AND owner = %s"


_logger = structlog.get_logger(__name__)


class Answers:
    """All tenants' answers of the last 24 hours. The schema must exist. Raises DATABASE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claim = database.statement(_CLAIM)
        self._keep = database.statements(_KEEP, _KEEPERS)
        self._keep_meanwhile = database.statements(_KEEP_MEANWHILE, _KEEPERS)
        self._meanwhile: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._owner = secrets.randbits(62)
        self._locking = asyncio.Lock()
        self._lock: Connection | None = None  # Holds the lock that shows that this process is alive.

    async def close(self) -> None:
        """Releases all claims, once pending answers are stored."""
        if self._meanwhile:
            await asyncio.wait(self._meanwhile.values(), timeout=_CLOSE_SECONDS)
        if self._lock is not None:
            await self._lock.close()

    async def claim(self, request: Request) -> pb.GenerateResponse | None:
        """Returns the first answer, waiting for whoever has claimed it; None: the claim is now the caller's.

        Raises REQUEST_ID_REUSED if the first request with this id asked for something else.
        """
        if meanwhile := self._meanwhile.get(_key(request)):
            await asyncio.wait([meanwhile])
        values = [*_values(request), bigint(self._owner)]
        while True:
            row = await self._claim.run(values)
            answered, response, is_ours, claimed, is_locked = (row.get_value(0, column) for column in range(5))
            if answered is not None:
                _check(request, answered)
                return pb.GenerateResponse.FromString(response or b"")
            if is_ours == is_locked == _TRUE:
                return None
            if is_ours == _TRUE:
                await self._take_lock()
                continue
            if claimed is not None:
                _check(request, claimed)
            await asyncio.sleep(_POLL_SECONDS)

    async def keep(self, request: Request, response: pb.GenerateResponse) -> pb.GenerateResponse:
        """Stores an answer durably and returns the first one: this one, or one that was stored meanwhile."""
        kept = await self._keep.run([*_values(request), response.SerializeToString()])
        if kept.command_tuples == 1:
            return response
        return await self.claim(request) or response

    async def keep_meanwhile(self, request: Request, response: pb.GenerateResponse) -> None:
        """Stores an answer in the background, since the caller stores it too; a repeat waits for it."""
        if len(self._meanwhile) >= _MAX_MEANWHILE:
            await self.keep(request, response)
            return
        key = _key(request)
        self._meanwhile[key] = asyncio.create_task(self._keep_or_release(request, response))
        self._meanwhile[key].add_done_callback(lambda _: self._meanwhile.pop(key, None))

    async def _keep_or_release(self, request: Request, response: pb.GenerateResponse) -> None:
        try:
            await self._keep_meanwhile.run([*_values(request), response.SerializeToString()])
        except Exception as error:
            _logger.warning("provider.answer.not_kept", request_id=request.request_id, problem=str(error))
            with suppress(AgentShellError):  # Without a database, the claim ends with this process.
                await self.release(request)

    async def release(self, request: Request) -> None:
        """Gives up a claim that led to no answer, so that a repeat can try."""
        async with self._database.connection() as connection:
            await connection.execute(_RELEASE, (request.tenant_id, request.request_id, self._owner))

    async def _take_lock(self) -> None:
        """Takes the lock, which was never taken or was lost with its connection."""
        async with self._locking:
            if self._lock is not None:
                await self._lock.close()
            self._lock = await self._database.dedicated()
            await self._lock.execute("SELECT pg_advisory_lock(%s)", (self._owner,))


def _key(request: Request) -> tuple[str, str]:
    return request.tenant_id, request.request_id


def _values(request: Request) -> list[bytes]:
    return [request.tenant_id.encode(), request.request_id.encode(), request.digest]


def _check(request: Request, first: bytes) -> None:
    if first != request.digest:
        raise request_id_reused(request.request_id)
