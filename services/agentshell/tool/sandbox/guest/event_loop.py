"""An event loop for async tools, with nothing to wait for but time: no sockets, no threads, no signals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any


class _Clock:
    """Stands in for the selector of an event loop: nothing is ever ready, so it sleeps."""

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the tool waits for something that will never happen")
        time.sleep(max(timeout, 0.0))
        return []


class _Loop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._selector = _Clock()

    def _process_events(self, event_list: Any) -> None:
        """There are none."""


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end."""
    loop = _Loop()
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(work)
