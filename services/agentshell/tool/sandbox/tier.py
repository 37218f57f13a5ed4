"""The ways to lock a tool up. A tier makes workers; one that does not hold makes none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agentshell.tool.sandbox.limits import Limits
from agentshell.tool.sandbox.worker import Worker


class Tier(Protocol):
    """A kind of sandbox."""

    max_calls: int
    """What one of its workers serves."""

    async def open(self, tell: Callable[[str], None]) -> None:
        """Makes what workers need; `tell` hears of what takes long. Raises SANDBOX_UNAVAILABLE."""
        ...

    async def start(self) -> Worker:
        """Starts a worker, which has proved itself. Raises SANDBOX_UNAVAILABLE."""
        ...


def request(call: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Returns what a worker is sent: `call` is as `guest/runner.py` takes it."""
    text = json.dumps(call, ensure_ascii=False)
    return {"call": text, "cpu_seconds": limits.cpu_seconds, "output_bytes": limits.output_bytes}
