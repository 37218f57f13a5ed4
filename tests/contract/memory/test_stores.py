"""A vector index beside Postgres may fail, be lost or lag behind: search results stay right."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import psycopg
import pytest
from tests.contract.memory import stores

from agentshell.db.database import Database
from agentshell.memory import recall
from agentshell.memory.stores import index as indexes
from agentshell.memory.stores.beside import BesideStore
from agentshell.memory.stores.change import change
from agentshell.memory.stores.index import Point
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.qdrant import QdrantIndex
from agentshell.memory.stores.store import Embedding, Entry, Place, Probe, Query, Space
from agentshell.mesh import call
from agentshell.mesh.call import Principal
from agentshell.mesh.config import MemoryConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb

DIMENSION = 8
PLACE, OTHER = Place("acme", "user/ann"), Place("globex", "user/ann")
NOBODY = "http://127.0.0.1:9"  # The discard port, which nobody serves.


@pytest.fixture
async def index() -> AsyncGenerator[QdrantIndex]:
    index = stores.qdrant_index()
    await index.drop(DIMENSION)  # A server may have leftovers of an earlier run.
    yield index
    await index.close()


@pytest.fixture
async def store(database: Database, index: QdrantIndex) -> BesideStore:
    return await BesideStore.open_beside(database, index, exact_records=0)


def embedding(direction: int) -> Embedding:
    made = np.full(DIMENSION, 0.1, dtype=np.float32)
    made[direction] = 1.0
    return (made / np.linalg.norm(made)).astype(np.float16)


def entry(name: str, direction: int) -> Entry:
    return Entry(pb.Record(record_id=name, kind=pb.RECORD_KIND_FACT, text=name), embedding(direction))


async def write(database: Database, store: PgvectorStore, *entries: Entry, place: Place = PLACE) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO memory.namespaces (place, tenant_id, namespace, embedder, dimension, slot)"
            " VALUES (%s, %s, %s, 'test', %s, 1) ON CONFLICT DO NOTHING",
            [place.key, *place, DIMENSION],
        )
    async with change(database, place) as connection:
        await store.write(connection, place, entries, None)


async def found(store: PgvectorStore, direction: int, place: Place = PLACE, limit: int = 2) -> Sequence[str]:
    """Returns the ids of the records nearest to a direction."""
    probe = Probe([place], Space("test", DIMENSION), embedding(direction))
    weights = recall.weights(pb.SEARCH_MODE_VECTOR)
    query = Query(places=[place], text=None, probes=[probe], weights=weights, containing=None, limit=limit)
    with call.scope(Principal(place.tenant_id, "ann"), None):
        return [hit.record.record_id for hit in (await store.search(query)).response.hits]


async def test_an_index_brings_the_nearest_of_one_place_alone(database: Database, store: BesideStore) -> None:
    await write(database, store, *(entry(f"r{n}", n) for n in range(DIMENSION)))
    await write(database, store, entry("theirs", 3), place=OTHER)
    assert (await found(store, 3, limit=1), await found(store, 5, limit=1)) == (["r3"], ["r5"])
    assert await found(store, 3, OTHER) == ["theirs"]


async def test_what_is_forgotten_or_written_over_is_not_found_whatever_the_index_still_has(
    database: Database, store: BesideStore, index: QdrantIndex
) -> None:
    await write(database, store, entry("a", 1), entry("b", 1))
    await write(database, store, entry("b", 2))
    async with change(database, PLACE) as connection:
        forget = pb.ForgetRequest(namespace=PLACE.namespace, records=pb.RecordIds(record_ids=["a"]))
        assert await store.forget(connection, PLACE, forget) == 1
    assert (await index.count(DIMENSION), await found(store, 1)) == (3, ["b"])
    await store.sweep(100)
    assert (await index.count(DIMENSION), await found(store, 1)) == (1, ["b"])


async def test_what_the_index_has_of_nobody_takes_no_hits_away(
    database: Database, store: BesideStore, index: QdrantIndex
) -> None:
    await write(database, store, entry("near", 1), entry("far", 2))
    between = embedding(1) + embedding(3)
    await index.put(DIMENSION, [Point(uuid.uuid4(), PLACE.key, between) for _ in range(30)])
    assert await found(store, 1) == ["near", "far"]


async def test_what_a_transaction_put_into_the_index_and_did_not_commit_goes_again(
    database: Database, store: BesideStore, index: QdrantIndex
) -> None:
    async with change(database, PLACE) as connection:
        await store.write(connection, PLACE, [entry("a", 1)], None)
        raise psycopg.Rollback
    assert await index.count(DIMENSION) == 1
    await store.sweep(100)
    assert await index.count(DIMENSION) == 1  # Its write might still be under way.
    async with database.connection() as connection:
        await connection.execute("UPDATE memory_vectors.dead SET ripe_time = ripe_time - interval '1 hour'")
    await store.sweep(100)
    assert await index.count(DIMENSION) == 0


async def test_an_index_that_is_new_or_was_lost_is_made_anew_when_the_store_opens(
    database: Database, index: QdrantIndex
) -> None:
    plain = await PgvectorStore.open(database)
    await write(database, plain, *(entry(f"r{n}", n) for n in range(DIMENSION)))
    store = await BesideStore.open_beside(database, index, exact_records=0)
    assert (await index.count(DIMENSION), await found(store, 3, limit=1)) == (DIMENSION, ["r3"])
    await index.drop(DIMENSION)
    store = await BesideStore.open_beside(database, index, exact_records=0)
    assert (await index.count(DIMENSION), await found(store, 3, limit=1)) == (DIMENSION, ["r3"])
    await BesideStore.open_beside(database, index)
    assert await index.count(DIMENSION) == DIMENSION


async def test_without_its_index_a_store_compares_in_postgres_and_refuses_to_write(
    database: Database, store: BesideStore
) -> None:
    down = QdrantIndex.at(NOBODY, None)
    blind = await BesideStore.open_beside(database, down, exact_records=0)
    await write(database, store, entry("a", 1), entry("b", 2))
    assert await found(blind, 2, limit=1) == ["b"]
    with pytest.raises(AgentShellError) as error:
        await write(database, blind, entry("c", 3))
    assert (error.value.reason, error.value.metadata["store"]) == (
        error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE,
        "qdrant",
    )
    assert list(await store.get([PLACE], ["a", "b", "c"])) == ["a", "b"]
    await down.close()


async def test_an_index_says_what_it_cannot_take(store: BesideStore, index: QdrantIndex) -> None:
    with pytest.raises(AgentShellError) as error:
        await store.prepare(Space("huge", 16_001))
    assert error.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    with pytest.raises(AgentShellError) as error:
        await index.put(DIMENSION, [Point(uuid.uuid4(), PLACE.key, embedding(1)[:3])])
    assert error.value.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE


def test_a_store_is_as_configured() -> None:
    assert indexes.of(MemoryConfig(), {}) is None
    made = indexes.of(MemoryConfig(store="qdrant", index_key_env="KEY", qdrant_url="https://q"), {"KEY": "secret"})
    assert isinstance(made, QdrantIndex)
    with pytest.raises(AgentShellError, match="index_key_env") as error:
        indexes.of(MemoryConfig(store="qdrant", index_key_env="KEY"), {})
    assert error.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
