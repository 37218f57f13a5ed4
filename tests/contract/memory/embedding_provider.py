"""A real Provider service that embeds texts by hashing their words, so that tests can check vectors."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np
from tests.contract.serving import Member, member

from agentshell.mesh import call, channel
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb
from kfm.provider.v1.provider_service_pb2_grpc import (
    ProviderServiceServicer,
    add_ProviderServiceServicer_to_server,
)

# The principal that re-embeds in the background, rather than for a client's call.
_BACKGROUND = "memory"


def vector(model: str, text: str, dimension: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Returns a model's vector of a text. Each model has its own hash, so vectors of two models are not comparable.

    Words may collide: among texts of one form, a query that is a word of a text matches that text best.
    """
    slots = [zlib.crc32(f"{model} {word}".encode()) % dimension for word in text.split()]
    made = np.bincount(slots, minlength=dimension).astype(np.float64)
    return made / np.linalg.norm(made)


class EmbeddingProvider(ProviderServiceServicer):
    """Models `small` (256 dimensions) and `large` (512, or as many as requested).

    Background requests after the first `batches` set `waits` and wait for `goes_on`. With `fails` set, clients' calls
    are refused.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.goes_on, self.waits = asyncio.Event(), asyncio.Event()
        self.fails = False
        self.background_texts: list[str] = []

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802 - the RPC's name
        if call.current().principal.principal_id == _BACKGROUND:
            if not self.batches:
                self.waits.set()
                await self.goes_on.wait()
            else:
                self.batches -= 1
            self.background_texts += request.texts
        elif self.fails:
            raise AgentShellError(error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE, "the vendor is down")
        dimension = request.dimension or {"small": 256, "large": 512}[request.model]
        made = [vector(request.model, text, dimension) for text in request.texts]
        return pb.EmbedResponse(embeddings=[pb.Embedding(values=values) for values in made])


def make(batches: int) -> EmbeddingProvider:
    """Returns a provider. Its other RPCs answer UNIMPLEMENTED, gRPC's default."""
    return EmbeddingProvider(batches)  # pyright: ignore[reportAbstractUsage] - the stubs call optional methods abstract


@asynccontextmanager
async def serving(provider: EmbeddingProvider) -> AsyncGenerator[tuple[Member, grpc.aio.Channel]]:
    """Serves the provider, and yields its member and another member's channel to it."""
    async with member() as served:
        served.server.add(
            "kfm.provider.v1.ProviderService", lambda to: add_ProviderServiceServicer_to_server(provider, to)
        )
        await (await served.start()).close()
        async with channel.connect(served.mesh_address, served.keyring) as way:
            yield served, way
