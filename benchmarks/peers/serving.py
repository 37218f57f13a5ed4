"""How a peer's process is spoken to: it says that it is ready, then answers each line of stdin with numbers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable

READY = "ready"


async def serve(answer: Callable[[list[str]], Awaitable[Iterable[float]]], word: str = "") -> None:
    """Says `word` with being ready, and answers each line, split into words, until stdin ends."""
    print(READY, word, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(*await answer(line.split()), flush=True)
