"""The stores that the memory suite runs over."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from qdrant_client import AsyncQdrantClient

from agentshell.db.database import Database
from agentshell.memory.stores.beside import BesideStore
from agentshell.memory.stores.index import VectorIndex
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.qdrant import QdrantIndex
from agentshell.memory.stores.store import Store

Open = Callable[[Database], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def _pgvector(database: Database) -> AsyncGenerator[Store]:
    yield await PgvectorStore.open(database)


@asynccontextmanager
async def beside(database: Database, index: VectorIndex) -> AsyncGenerator[BesideStore]:
    """Opens a store that queries its index however few records there are."""
    yield await BesideStore.open_beside(database, index, exact_records=0)
    await index.close()


def _qdrant(database: Database) -> AbstractAsyncContextManager[Store]:
    """Qdrant's in-process client, or the server that AGENTSHELL_TEST_QDRANT names, such as http://127.0.0.1:6333."""
    return beside(database, qdrant_index())


def qdrant_index() -> QdrantIndex:
    url = os.environ.get("AGENTSHELL_TEST_QDRANT")
    return QdrantIndex.at(url, None) if url else QdrantIndex(AsyncQdrantClient(":memory:"), "memory", is_local=True)


def _weaviate(database: Database) -> AbstractAsyncContextManager[Store]:
    """The server that AGENTSHELL_TEST_WEAVIATE names, such as http://127.0.0.1:8080; without one it is not tested."""
    from agentshell.memory.stores.weaviate import WeaviateIndex  # The import takes a second.

    return beside(database, WeaviateIndex.at(os.environ["AGENTSHELL_TEST_WEAVIATE"], 50051, None))


STORES: dict[str, Open] = {"pgvector": _pgvector, "qdrant": _qdrant}
if os.environ.get("AGENTSHELL_TEST_WEAVIATE"):
    STORES["weaviate"] = _weaviate
