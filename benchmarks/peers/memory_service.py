"""The Memory service in a process of its own, whose embedder knows the vectors of a file by their numbers.

    python -m benchmarks.peers.memory_service DATABASE_URL VECTORS.npz DIRECTORY

If its database is empty, it is filled first. Prints its address, its key, and how many seconds the COPY of the vectors
and their index took.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from agentshell.db.database import Database
from agentshell.memory.embedders.choice import Choice
from agentshell.memory.embedders.embedder import Embedder, Role
from agentshell.memory.service import MemoryService
from agentshell.memory.stores import namespaces
from agentshell.memory.stores.change import change
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.store import Embedding, Entry, Place, Space
from agentshell.mesh.config import MemoryConfig, ServerConfig
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.server import Server
from benchmarks.peers.serving import READY
from benchmarks.vectors import DIMENSION, metadata, text
from kfm.memory.v1.memory_service_pb2 import RECORD_KIND_CHUNK, Record
from kfm.memory.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server

TENANT = "bench"
NAMESPACE = "knowledge/synthetic"
SPACE = Space("synthetic", DIMENSION)

_PLACE = Place(TENANT, NAMESPACE)
_BATCH = 5_000
_CONNECTIONS = 8


class _Numbered:
    """Takes the query `7` for query number 7, and anything else for the first one: embedding costs nothing."""

    name = SPACE.embedder
    dimension = DIMENSION

    def __init__(self, queries: NDArray[np.float16]) -> None:
        self._queries = queries

    async def embed(self, texts: Sequence[str], role: Role) -> list[Embedding | None]:
        return [self._queries[int(text) if role == "query" else 0] for text in texts]


class _Choice(Choice):
    """Chooses this one embedder for every namespace."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(MemoryConfig(), None)
        self._embedder = embedder

    def wanted(self, namespace: str) -> Embedder:
        return self._embedder

    def named(self, name: str, dimension: int) -> Embedder:
        return self._embedder


async def _fill(database: Database, store: PgvectorStore, vectors: NDArray[np.float16]) -> tuple[float, float]:
    """Returns the seconds that the records took without an index of their vectors, and that the index took."""
    async with database.connection() as connection:
        await namespaces.begin(connection, _PLACE, SPACE)
    began = time.perf_counter()
    for start in range(0, len(vectors), _BATCH):
        entries = [Entry(_record(start + n), vector) for n, vector in enumerate(vectors[start : start + _BATCH])]
        async with change(database, _PLACE) as connection:
            await store.replace_document(connection, _PLACE, f"part/{start}", {}, entries)
    copied = time.perf_counter()
    await store.prepare(SPACE)
    indexed = time.perf_counter()
    async with database.connection() as connection:
        await connection.execute("VACUUM ANALYZE memory.records")
    return copied - began, indexed - copied


def _record(number: int) -> Record:
    record = Record(record_id=f"{number:09}", kind=RECORD_KIND_CHUNK, text=text(number))
    record.metadata.update(metadata(number))
    record.source.uri, record.source.chunk_index = f"part/{number // _BATCH * _BATCH}", number % _BATCH
    return record


async def _serve(url: str, file: str, directory: Path) -> None:
    data = np.load(file)
    database = await Database.open(url, _CONNECTIONS)
    store = await PgvectorStore.open(database)
    copied, indexed = await _fill(database, store, data["vectors"])
    service = MemoryService(MemoryConfig(), database, store, choice=_Choice(_Numbered(data["queries"])))
    keyring = Keyring(directory / "keys.json", directory / "mesh.key")
    server = Server(ServerConfig(address="127.0.0.1:0"), f"unix:{directory}/mesh.sock", keyring)
    server.add("kfm.memory.v1.MemoryService", lambda inner: add_MemoryServiceServicer_to_server(service, inner))
    await server.start()
    await server.ready()
    print(READY, server.address, keyring.create(TENANT, "bench"), copied, indexed, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)
    await database.close()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
