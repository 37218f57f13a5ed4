"""The embedder port: turns texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from agentshell.memory.stores.store import Embedding

Role = Literal["document", "query"]


class Embedder(Protocol):
    """Makes vectors of `dimension` numbers and length 1. `name` stands for one model, and is recorded with them."""

    name: str
    dimension: int

    async def embed(self, texts: Sequence[str], role: Role) -> list[Embedding | None]:
        """Returns one vector per text, in order; None for a text that has nothing to compare by.

        Takes any number of texts, in batches, without blocking the event loop. Raises AgentShellError.
        """
        ...


def unit(vector: NDArray[np.float32]) -> Embedding | None:
    """Returns the vector scaled to length 1; None if its length is zero or not finite."""
    norm = np.linalg.norm(vector)
    return (vector / norm).astype(np.float16) if np.isfinite(norm) and norm > 0 else None
