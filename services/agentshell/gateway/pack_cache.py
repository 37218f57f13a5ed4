"""A short-lived cache of personalities, for admitting turns."""

from __future__ import annotations

import time

import grpc.aio

from kfm.personality.v1.personality_service_pb2 import GetRequest, Personality
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub

_KEPT_SECONDS = 1.0  # A changed pack takes effect within this time.
_KEPT = 1024


class PackCache:
    """Asks the Personality service at most once a second for each personality."""

    def __init__(self, personality: grpc.aio.Channel) -> None:
        self._personality = PersonalityServiceStub(personality)
        self._found: dict[tuple[str, str], tuple[float, Personality]] = {}

    async def get(self, tenant_id: str, personality_id: str) -> Personality:
        """Returns a personality; an empty id means the default. Raises PERSONALITY_NOT_FOUND as AioRpcError."""
        key = (tenant_id, personality_id)
        expiry, personality = self._found.get(key, (0.0, None))
        if personality is None or time.monotonic() >= expiry:
            personality = (await self._personality.Get(GetRequest(personality_id=personality_id))).personality
            if len(self._found) >= _KEPT:
                self._found.clear()
            self._found[key] = (time.monotonic() + _KEPT_SECONDS, personality)
        return personality
