"""Answers a search: finds out the places' spaces, searches, and cuts the answer before it is too large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from agentshell.memory import checks, recall
from agentshell.memory.cache.read_through import ReadThrough
from agentshell.memory.embedding import Embeddings
from agentshell.memory.stores.generations import State
from agentshell.memory.stores.store import Found, Place, Query, Store
from kfm.memory.v1 import memory_service_pb2 as pb

_Item = TypeVar("_Item", bound=Message)


class Searching:
    """Searches in a store, through a cache."""

    def __init__(self, store: Store, embeddings: Embeddings, reads: ReadThrough) -> None:
        self._store = store
        self._embeddings = embeddings
        self._reads = reads

    async def search(self, request: pb.SearchRequest, limit_bytes: int) -> pb.SearchResponse:
        """Returns the best hits, as many as fit into `limit_bytes`."""
        places = [place for namespace in dict.fromkeys(request.namespaces) for place in checks.readable(namespace)]

        async def attempt() -> Found:
            return await self._attempt(request, places, limit_bytes)

        async def search(_known: State | None = None) -> Found:
            return await self._embeddings.settled(places, attempt)

        if request.HasField("recency_half_life"):
            return (await search()).response  # The answer changes with time.
        return await self._reads.read_stated(places, request, pb.SearchResponse, search)

    async def _attempt(self, request: pb.SearchRequest, places: Sequence[Place], limit_bytes: int) -> Found:
        weights = recall.weights(request.mode)
        probes, bare = await self._embeddings.probes(places, request.query) if weights.vector else ([], [])
        embedders = list(dict.fromkeys(probe.space.embedder for probe in probes))
        half_life = request.recency_half_life.ToNanoseconds() / 1e9 if request.HasField("recency_half_life") else None
        query = Query(
            places=places,
            text=request.query if weights.text else None,
            probes=probes,
            weights=recall.weights(request.mode, embedders),
            containing=checks.filter_of(request),
            limit=request.limit or recall.DEFAULT_LIMIT,
            kinds=request.kinds,
            min_score=request.min_score if request.HasField("min_score") else None,
            diversity=request.diversity,
            half_life_seconds=half_life,
            neighbour_count=request.neighbour_count,
            bare_places=bare,
        )
        found = await self._store.search(query)
        response = found.response
        response.embedder = ", ".join(embedders)
        if response.ByteSize() > limit_bytes:
            del response.hits[len(fitting(response.hits, limit_bytes)) :]
        return found


def fitting(items: Sequence[_Item], limit_bytes: int) -> Sequence[_Item]:
    """Returns the first items, as many as fit into the limit."""
    total_bytes = 0
    for index, item in enumerate(items):
        total_bytes += item.ByteSize()
        if total_bytes > limit_bytes:
            return items[:index]
    return items
