"""Embedders `local/<name>`: models of the BERT family in this process, from configured directories."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agentshell.memory.embedders.embedder import Role, unit
from agentshell.memory.stores.store import Embedding
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

if TYPE_CHECKING:
    from agentshell.memory.embedders.bert import Bert

_BATCH = 16


class LocalEmbedder:
    """The model in `directory`, loaded with the first text. Runs one batch at a time, in a thread."""

    def __init__(self, name: str, directory: Path) -> None:
        """Raises CONFIG_INVALID if the extra or the model is missing, or the model is of another family."""
        self.name = name
        self._directory = directory
        try:
            from agentshell.memory.embedders import bert
        except ImportError:
            raise self._invalid("needs an extra", "pip install 'agentshell[local]'") from None
        try:
            self._shape = bert.read_shape(directory)
        except (OSError, ValueError, KeyError) as error:
            raise self._invalid(f"cannot be read: {error}", "name a directory with config.json") from error
        self.dimension = self._shape.dimension
        self._model: Bert | None = None
        self._turn = asyncio.Lock()

    async def embed(self, texts: Sequence[str], role: Role) -> list[Embedding | None]:
        """See `Embedder.embed`. Raises CONFIG_INVALID if the model's weights or tokenizer cannot be read."""
        prompt = self._shape.prompts.get(role, "")
        # Texts of similar length go together, because each is padded to the longest in its batch.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors: list[Embedding | None] = [None] * len(texts)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            async with self._turn:
                made = await asyncio.to_thread(self._embed, [prompt + texts[index] for index in batch])
            for index, vector in zip(batch, made, strict=True):
                vectors[index] = unit(vector)
        return vectors

    def _embed(self, texts: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        from agentshell.memory.embedders.bert import Bert

        if self._model is None:
            try:
                self._model = Bert(self._directory, self._shape)
            except Exception as error:  # The libraries raise exceptions of their own.
                raise self._invalid(f"cannot be loaded: {error}", "name a directory with a whole model") from error
        return self._model.embed(texts)

    def _invalid(self, problem: str, fix: str) -> AgentShellError:
        return AgentShellError(
            error_pb2.ERROR_REASON_CONFIG_INVALID,
            f"the embedder {self.name!r}, of memory.local_models, {problem}; {fix}",
            metadata={"key": "memory.local_models", "fix": fix},
        )
