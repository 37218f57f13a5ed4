"""The embedder `lexical`: the vectors of `memory/lexical.py`, made a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentshell.memory import lexical
from agentshell.memory.embedders.embedder import Role, unit
from agentshell.memory.stores.store import Embedding

# Texts per slice. A chunk takes 0.3 ms; between two slices, the event loop can do other work.
_SLICE = 8


class LexicalEmbedder:
    """Compares words and spelling. Always available."""

    name = lexical.NAME
    dimension = lexical.DIMENSIONS

    async def embed(self, texts: Sequence[str], role: Role) -> list[Embedding | None]:
        """See `Embedder.embed`. Never fails, and treats a query like any other text."""
        vectors: list[Embedding | None] = []
        for index, text in enumerate(texts):
            if index and index % _SLICE == 0:
                await asyncio.sleep(0)
            vector = lexical.embed(text)
            vectors.append(None if vector is None else unit(vector))
        return vectors
