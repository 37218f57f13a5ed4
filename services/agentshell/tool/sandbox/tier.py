"""The ways to confine a tool. A tier makes workers; one that does not hold makes none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agentshell.tool.sandbox.limits import Limits
from agentshell.tool.sandbox.worker import Worker


class Tier(Protocol):
    """A kind of sandbox."""

    max_calls: int
    """How many calls one of its workers serves."""

    async def open(self, tell: Callable[[str], None]) -> None:
        """Makes what workers need; `tell` is told what takes long. Raises SANDBOX_UNAVAILABLE."""
        ...

    async def start(self) -> Worker:
        """Starts a worker that has proved that it is locked. Raises SANDBOX_UNAVAILABLE."""
        ...


def request(call: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Returns the request to a worker; `call` is what `guest/runner.py` takes."""
    text = json.dumps(call, ensure_ascii=False)
    return {"call": text, "cpu_seconds": limits.cpu_seconds, "output_bytes": limits.output_bytes}
