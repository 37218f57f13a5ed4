"""Buries records of `agent.turns` that no owner can handle, so that the others go on."""

from __future__ import annotations

import traceback

import structlog
from google.protobuf.message import DecodeError

from agentshell.log.dead_letter import bury
from agentshell.log.log import Log, StoredRecord
from agentshell.turn import envelope

_log = structlog.get_logger("agentshell.manager")

_MAX_ATTEMPTS = 3


class Poison:
    """Counts failures by record. All owners of a process share it, because each failure ends one of them."""

    def __init__(self, log: Log, group: str) -> None:
        self._log = log
        self._group = group
        self._attempts: dict[tuple[int, int], int] = {}  # place -> number of failures

    async def blame(self, stored: StoredRecord, error: Exception) -> None:
        """Buries a record that cannot be decoded or failed for the third time. Otherwise raises `error`."""
        place = (stored.partition, stored.offset)
        attempts = self._attempts[place] = self._attempts.get(place, 0) + 1
        if not isinstance(error, DecodeError) and attempts < _MAX_ATTEMPTS:
            raise error
        _log.error("record buried", partition=stored.partition, offset=stored.offset, exc_info=error)
        reason = f"{'undecodable' if isinstance(error, DecodeError) else type(error).__name__}: {error}"
        stack = "".join(traceback.format_exception(error))
        await bury(self._log, envelope.TURNS, self._group, stored, reason, stack=stack, attempts=attempts)
        del self._attempts[place]
