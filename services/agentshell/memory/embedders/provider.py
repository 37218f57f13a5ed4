"""Embedders of the Provider service: any model that a vendor serves, over gRPC."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import grpc.aio
import numpy as np

from agentshell.memory.embedders.embedder import Role, unit
from agentshell.memory.stores.store import Embedding
from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.provider.v1.provider_service_pb2 import EmbedRequest
from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceStub

# Limits of one request: what vendors accept.
_MAX_TEXTS = 96
_MAX_CHARACTERS = 100_000
# The limit of a text: more would not fit most models. No chunk is longer; of a longer record, the beginning counts.
_MAX_TEXT_CHARACTERS = 16_384
_TIMEOUT_SECONDS = 30.0


class ProviderEmbedder:
    """A model, named `provider/model`. Its vectors have `dimension` numbers: its own, or fewer if it supports that."""

    def __init__(self, channel: grpc.aio.Channel, name: str, dimension: int) -> None:
        self.name = name
        self.dimension = dimension
        self._stub = ProviderServiceStub(channel)
        self._is_shortened = False  # Learned from the first answer: not every model accepts a dimension.

    async def embed(self, texts: Sequence[str], role: Role) -> list[Embedding | None]:
        """See `Embedder.embed`. Raises what the Provider service raises, and CONFIG_INVALID for another dimension."""
        vectors: list[Embedding | None] = []
        for batch in _batches([text[:_MAX_TEXT_CHARACTERS] for text in texts]):
            values = await self._ask(batch)
            if len(values[0]) > self.dimension and not self._is_shortened:
                self._is_shortened = True
                values = await self._ask(batch)
            vectors += [self._vector(each) for each in values]
        return vectors

    async def _ask(self, texts: Sequence[str]) -> list[Sequence[float]]:
        provider, _, model = self.name.partition("/")
        dimension = self.dimension if self._is_shortened else None
        request = EmbedRequest(provider=provider, model=model, texts=texts, dimension=dimension)
        try:
            response = await self._stub.Embed(request, timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise errors.of(error) from error
        if len(response.embeddings) != len(texts):
            raise AgentShellError(
                error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID,
                f"{self.name} answered {len(texts)} texts with {len(response.embeddings)} vectors: try again, or "
                "choose another embedder",
            )
        return [embedding.values for embedding in response.embeddings]

    def _vector(self, values: Sequence[float]) -> Embedding | None:
        if len(values) != self.dimension:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"vectors of {self.name} have {len(values)} numbers, and memory.namespaces says {self.dimension}: set "
                "its `dimension` to the model's",
                metadata={"key": "memory.namespaces", "fix": f"dimension = {len(values)}"},
            )
        return unit(np.array(values, dtype=np.float32))


def _batches(texts: Sequence[str]) -> Generator[Sequence[str]]:
    start = characters = 0
    for index, text in enumerate(texts):
        if index > start and (index - start == _MAX_TEXTS or characters + len(text) > _MAX_CHARACTERS):
            yield texts[start:index]
            start, characters = index, 0
        characters += len(text)
    if texts:
        yield texts[start:]
