"""How to talk to a peer's process: it says that it is ready, then answers each line of stdin with numbers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable

READY = "ready"


async def serve(answer: Callable[[list[str]], Awaitable[Iterable[float]]], word: str = "") -> None:
    """Prints that it is ready, with `word`, and answers each line, split into words, until stdin ends."""
    print(READY, word, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(*await answer(line.split()), flush=True)
