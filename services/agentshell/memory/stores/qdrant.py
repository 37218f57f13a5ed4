"""The vector index in Qdrant."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final

import grpc
from qdrant_client import AsyncQdrantClient
from qdrant_client.http.exceptions import ApiException
from qdrant_client.models import (
    Datatype,
    Distance,
    FieldCondition,
    Filter,
    HnswConfigDiff,
    KeywordIndexParams,
    KeywordIndexType,
    MatchValue,
    PointIdsList,
    PointStruct,
    SearchParams,
    VectorParams,
)

from agentshell.memory.stores import abilities
from agentshell.memory.stores.index import Point, reaching
from agentshell.memory.stores.store import Embedding

# Shorter than Postgres lets a transaction be idle, because one waits for it.
_TIMEOUT_SECONDS: Final = 4
_LINKS = 16
_EFFORT = 128
_PLACE = "place"
_FAILURES = (ApiException, grpc.RpcError, OSError, ValueError)


class QdrantIndex:
    """One collection per vector length, in which each place has a graph of its own."""

    abilities = abilities.QDRANT

    def __init__(self, client: AsyncQdrantClient, url: str, *, is_local: bool = False) -> None:
        """`is_local`: the client runs without a server, and has no indexes."""
        self._client = client
        self._url = url
        self._is_local = is_local
        self._prepared: set[int] = set()

    @classmethod
    def at(cls, url: str, api_key: str | None) -> QdrantIndex:
        """Returns the index on a server. Connects on first use."""
        client = AsyncQdrantClient(url=url, api_key=api_key, timeout=_TIMEOUT_SECONDS, check_compatibility=False)
        return cls(client, url)

    async def prepare(self, dimension: int) -> None:
        """See `VectorIndex.prepare`."""
        if dimension in self._prepared:
            return
        with self._reaching():
            await self._make(dimension)
        self._prepared.add(dimension)

    async def put(self, dimension: int, points: Sequence[Point]) -> None:
        """See `VectorIndex.put`."""
        await self.prepare(dimension)
        structs = [
            PointStruct(id=str(point.point_id), vector=point.embedding.tolist(), payload={_PLACE: point.place})
            for point in points
        ]
        with self._reaching():
            await self._client.upsert(_collection(dimension), structs, wait=True)

    async def nearest(self, place: str, embedding: Embedding, limit: int) -> Sequence[uuid.UUID]:
        """See `VectorIndex.nearest`."""
        dimension = len(embedding)
        await self.prepare(dimension)
        with self._reaching():
            found = await self._client.query_points(
                _collection(dimension),
                embedding.tolist(),
                query_filter=Filter(must=[FieldCondition(key=_PLACE, match=MatchValue(value=place))]),
                search_params=None if self._is_local else SearchParams(hnsw_ef=max(_EFFORT, limit)),
                limit=limit,
                with_payload=False,
            )
        return [uuid.UUID(str(point.id)) for point in found.points]

    async def remove(self, dimension: int, point_ids: Sequence[uuid.UUID]) -> None:
        """See `VectorIndex.remove`."""
        await self.prepare(dimension)
        with self._reaching():
            names = PointIdsList(points=[str(point_id) for point_id in point_ids])
            await self._client.delete(_collection(dimension), names, wait=True)

    async def drop(self, dimension: int) -> None:
        """See `VectorIndex.drop`."""
        with self._reaching():
            await self._client.delete_collection(_collection(dimension))
        self._prepared.discard(dimension)

    async def count(self, dimension: int) -> int:
        """See `VectorIndex.count`."""
        await self.prepare(dimension)
        with self._reaching():
            return (await self._client.count(_collection(dimension), exact=True)).count

    async def close(self) -> None:
        """See `VectorIndex.close`."""
        await self._client.close()

    async def _make(self, dimension: int) -> None:
        name = _collection(dimension)
        if not await self._client.collection_exists(name):
            try:
                await self._client.create_collection(
                    name,
                    vectors_config=VectorParams(size=dimension, distance=Distance.COSINE, datatype=Datatype.FLOAT16),
                    # No graph across places: nobody searches all of them.
                    hnsw_config=HnswConfigDiff(m=0, payload_m=_LINKS),
                )
            except _FAILURES:  # Another process may have created it first.
                if not await self._client.collection_exists(name):
                    raise
        if not self._is_local:
            schema = KeywordIndexParams(type=KeywordIndexType.KEYWORD, is_tenant=True)
            await self._client.create_payload_index(name, _PLACE, schema, wait=True)

    def _reaching(self) -> AbstractContextManager[None]:
        return reaching("qdrant", self._url, _FAILURES)


def _collection(dimension: int) -> str:
    return f"agentshell_{dimension}"
