"""A cache in this process' memory."""

from __future__ import annotations

from cachetools import TTLCache


class ProcessCache:
    """Keeps the most recently used values, for `ttl_seconds`, in about `max_bytes`."""

    name = "process"

    def __init__(self, ttl_seconds: float, max_bytes: int) -> None:
        self._kept = TTLCache[str, bytes, float](max_bytes, ttl_seconds, getsizeof=len)
        self._max_bytes = max_bytes

    async def get(self, key: str) -> bytes | None:
        """See `Cache.get`."""
        return self._kept.get(key)

    async def put(self, key: str, value: bytes) -> None:
        """See `Cache.put`."""
        if len(value) <= self._max_bytes:
            self._kept[key] = value

    async def close(self) -> None:
        """See `Cache.close`."""
        self._kept.clear()
