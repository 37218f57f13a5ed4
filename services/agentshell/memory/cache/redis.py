"""A cache in Redis, which several processes share. If Redis is down there is no cache, and no error."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_log = structlog.get_logger("agentshell.cache")

_MAX_CONNECTIONS = 32
# A cache is of no use if it takes longer than asking Postgres.
_TIMEOUT_SECONDS = 0.25
# After a failure it is left alone for this long, so that not every read waits for it.
_PAUSE_SECONDS = 1.0

_Answer = TypeVar("_Answer")


class RedisCache:
    """Keeps values for `ttl_seconds`; Redis' own setting `maxmemory` limits how many."""

    name = "redis"

    def __init__(self, url: str, ttl_seconds: float) -> None:
        """Connects on first use. Raises CONFIG_INVALID for an invalid Redis URL."""
        try:
            pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
                url,
                max_connections=_MAX_CONNECTIONS,
                timeout=_TIMEOUT_SECONDS,
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            # The client's message may repeat the URL's password.
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                "memory.redis_url is not a Redis URL: write redis://USER:PASSWORD@HOST:PORT/NUMBER",
                metadata={"key": "memory.redis_url", "fix": "redis://HOST:PORT/NUMBER"},
            ) from None
        self._redis = Redis(connection_pool=pool)
        self._pool = pool
        self._ttl_milliseconds = round(ttl_seconds * 1000)
        self._paused_until = 0.0

    async def get(self, key: str) -> bytes | None:
        """See `Cache.get`."""
        return await self._try(self._redis.get, key)

    async def put(self, key: str, value: bytes) -> None:
        """See `Cache.put`."""
        await self._try(self._redis.set, key, value, px=self._ttl_milliseconds)

    async def close(self) -> None:
        """See `Cache.close`."""
        await self._redis.aclose()
        await self._pool.aclose()

    async def _try(self, command: Any, *arguments: Any, **options: Any) -> Any:
        if time.monotonic() < self._paused_until:
            return None
        try:
            return await command(*arguments, **options)
        except (RedisError, OSError) as error:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            _log.warning("no cache for a moment", cache=self.name, error=type(error).__name__)
            return None
