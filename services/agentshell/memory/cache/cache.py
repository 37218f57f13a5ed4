"""The cache port. A cache may lose anything at any time; if it fails, it has nothing. It decides nothing."""

from __future__ import annotations

from typing import Protocol

from agentshell.memory.cache.process import ProcessCache
from agentshell.mesh.config import MemoryConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2


class Cache(Protocol):
    """Keeps values by key, for a limited time. Methods raise nothing."""

    name: str

    async def get(self, key: str) -> bytes | None:
        """Returns the value; None if it has none, or cannot tell."""
        ...

    async def put(self, key: str, value: bytes) -> None:
        """Stores a value, replacing the previous one, if it can."""
        ...

    async def close(self) -> None:
        """Closes the cache."""
        ...


def of(config: MemoryConfig) -> Cache | None:
    """Returns the configured cache; None if it is off. Raises CONFIG_INVALID."""
    match config.cache:
        case "off":
            return None
        case "process":
            return ProcessCache(config.cache_seconds, config.cache_mib * 1024 * 1024)
        case "redis":
            try:
                from agentshell.memory.cache.redis import RedisCache  # Its client is optional.
            except ImportError:
                raise AgentShellError(
                    error_pb2.ERROR_REASON_CONFIG_INVALID,
                    "configuration key 'memory.cache' = 'redis' needs its client; pip install 'agentshell[redis]'",
                    metadata={"key": "memory.cache", "fix": "pip install 'agentshell[redis]'"},
                ) from None
            return RedisCache(config.redis_url, config.cache_seconds)
