"""The vector index in Weaviate."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from weaviate import WeaviateAsyncClient
from weaviate.auth import Auth
from weaviate.classes.config import Configure, DataType, Property, Tokenization, VectorDistances
from weaviate.classes.data import DataObject
from weaviate.classes.init import AdditionalConfig, Timeout
from weaviate.classes.query import Filter
from weaviate.collections import CollectionAsync
from weaviate.connect import ConnectionParams
from weaviate.exceptions import WeaviateBaseError

from agentshell.memory.stores import abilities
from agentshell.memory.stores.index import Point, reaching, unavailable
from agentshell.memory.stores.store import Embedding

# Shorter than Postgres lets a transaction be idle, because one waits for it.
_TIMEOUT_SECONDS = 4
_PLACE = "place"
_FAILURES = (WeaviateBaseError, OSError)

_Collection: TypeAlias = CollectionAsync[Any, Any]


class WeaviateIndex:
    """One collection per vector length, filtered by place."""

    abilities = abilities.WEAVIATE

    def __init__(self, client: WeaviateAsyncClient, url: str) -> None:
        self._client = client
        self._url = url
        self._prepared: set[int] = set()
        self._preparing = asyncio.Lock()  # Connecting twice at once would leave one connection open.

    @classmethod
    def at(cls, url: str, grpc_port: int, api_key: str | None) -> WeaviateIndex:
        """Returns the index on a server. Connects on first use."""
        client = WeaviateAsyncClient(
            connection_params=ConnectionParams.from_url(url, grpc_port, grpc_secure=url.startswith("https:")),
            auth_client_secret=Auth.api_key(api_key) if api_key else None,
            additional_config=AdditionalConfig(
                timeout=Timeout(init=_TIMEOUT_SECONDS, query=_TIMEOUT_SECONDS, insert=_TIMEOUT_SECONDS)
            ),
            skip_init_checks=True,  # They ask PyPI for the client's newest version, and warn about ours.
        )
        return cls(client, url)

    async def prepare(self, dimension: int) -> None:
        """See `VectorIndex.prepare`."""
        async with self._preparing:
            if dimension in self._prepared and self._client.is_connected():
                return
            with self._reaching():
                if not self._client.is_connected():
                    await self._client.connect()
                await self._make(dimension)
            self._prepared.add(dimension)

    async def put(self, dimension: int, points: Sequence[Point]) -> None:
        """See `VectorIndex.put`."""
        await self.prepare(dimension)
        objects: list[DataObject[Any, Any]] = [
            DataObject(properties={_PLACE: point.place}, uuid=point.point_id, vector=point.embedding.tolist())
            for point in points
        ]
        with self._reaching():
            put = await self._collection(dimension).data.insert_many(objects)
        if put.has_errors:
            raise unavailable("weaviate", self._url, ValueError(next(iter(put.errors.values())).message))

    async def nearest(self, place: str, embedding: Embedding, limit: int) -> Sequence[uuid.UUID]:
        """See `VectorIndex.nearest`."""
        await self.prepare(len(embedding))
        with self._reaching():
            at_place = Filter.by_property(_PLACE).equal(place)
            query = self._collection(len(embedding)).query
            found = await query.near_vector(embedding.tolist(), limit=limit, filters=at_place, return_properties=False)
        return [found_object.uuid for found_object in found.objects]

    async def remove(self, dimension: int, point_ids: Sequence[uuid.UUID]) -> None:
        """See `VectorIndex.remove`."""
        await self.prepare(dimension)
        with self._reaching():
            await self._collection(dimension).data.delete_many(where=Filter.by_id().contains_any(list(point_ids)))

    async def drop(self, dimension: int) -> None:
        """See `VectorIndex.drop`."""
        await self.prepare(dimension)
        with self._reaching():
            await self._client.collections.delete(_name(dimension))
        self._prepared.discard(dimension)

    async def count(self, dimension: int) -> int:
        """See `VectorIndex.count`."""
        await self.prepare(dimension)
        with self._reaching():
            return (await self._collection(dimension).aggregate.over_all(total_count=True)).total_count or 0

    async def close(self) -> None:
        """See `VectorIndex.close`."""
        await self._client.close()

    def _collection(self, dimension: int) -> _Collection:
        return self._client.collections.get(_name(dimension))

    async def _make(self, dimension: int) -> None:
        if await self._client.collections.exists(_name(dimension)):
            return
        hnsw = Configure.VectorIndex.hnsw(distance_metric=VectorDistances.COSINE)
        try:
            await self._client.collections.create(
                _name(dimension),
                properties=[Property(name=_PLACE, data_type=DataType.TEXT, tokenization=Tokenization.FIELD)],
                vector_config=Configure.Vectors.self_provided(vector_index_config=hnsw),
            )
        except _FAILURES:  # Another process may have created it first.
            if not await self._client.collections.exists(_name(dimension)):
                raise

    def _reaching(self) -> AbstractContextManager[None]:
        return reaching("weaviate", self._url, _FAILURES)


def _name(dimension: int) -> str:
    return f"Agentshell{dimension}"
