"""Each namespace has its embedder; replacing it goes unnoticed but for better hits."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from tests.contract.memory import embedding_provider
from tests.contract.memory.caller import GUIDE, USER, Caller
from tests.contract.memory.conftest import serving
from tests.contract.memory.embedding_provider import EmbeddingProvider, vector

from agentshell.db.database import Database
from agentshell.memory import lexical, reembedding
from agentshell.memory.embedders.choice import Choice
from agentshell.memory.embedding import text as compared
from agentshell.memory.reembedding import Reembedding
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.store import Store
from agentshell.mesh.config import MemoryConfig, NamespaceConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb

WORKER = Path(__file__).parent / "reembedding_worker.py"
TIMEOUT_SECONDS = 30.0
RECORDS = 100
SIZE = 256

Reembed = Callable[[MemoryConfig], Coroutine[Any, Any, int]]


def config(embedder: str = "test/small", dimension: int = SIZE, namespace: str = "user/") -> MemoryConfig:
    return MemoryConfig(
        namespaces=(NamespaceConfig(namespace=namespace, embedder=embedder, dimension=dimension),),
        chunk_characters=300,
    )


@pytest.fixture
async def store(database: Database) -> Store:
    return await PgvectorStore.open(database)


@pytest.fixture
async def provider() -> EmbeddingProvider:
    return embedding_provider.make(batches=1_000)


@pytest.fixture
async def way(provider: EmbeddingProvider) -> AsyncGenerator[grpc.aio.Channel]:
    async with embedding_provider.serving(provider) as (_, way):
        yield way


@pytest.fixture
def memory(database: Database, store: Store, way: grpc.aio.Channel) -> Callable[[MemoryConfig], MemoryService]:
    """Makes services over the same memory, each as a separate process with its own configuration."""
    return lambda config: MemoryService(config, database, store, way)


@pytest.fixture
def reembed(database: Database, store: Store, way: grpc.aio.Channel) -> Reembed:
    """Brings all namespaces to the embedders of a configuration, as a separate process would."""
    return lambda config: Reembedding(database, store, Choice(config, way)).bring_all()


@asynccontextmanager
async def acme_of(memory: MemoryService) -> AsyncGenerator[Caller]:
    async with serving(memory) as caller:
        yield caller("acme")


async def fill(acme: Caller, count: int = RECORDS) -> None:
    for start in range(0, count, 50):
        await acme.write(USER, **{f"r{n:04}": f"topic{n} said once" for n in range(start, min(start + 50, count))})


async def found(acme: Caller, query: str) -> tuple[str, list[str]]:
    """Returns the embedder and the ids of a vector search, after checking that every score is that embedder's."""
    request = pb.SearchRequest(namespaces=[USER], query=query, mode=pb.SEARCH_MODE_VECTOR, limit=10)
    response = await acme(request)
    for hit in response.hits:
        assert abs(hit.vector_score - similarity(response.embedder, query, hit.record)) < 2e-3
    return response.embedder, [hit.record.record_id for hit in response.hits]


def similarity(embedder: str, query: str, record: pb.Record) -> float:
    texts = (query, compared(record.source.title, record.text))
    if embedder == "lexical":
        one, other = (lexical.embed(each) for each in texts)
        assert one is not None
        assert other is not None
        return float(one @ other)
    one, other = (vector(embedder.removeprefix("test/"), each, SIZE) for each in texts)
    return float(np.dot(one, other))


async def stats(acme: Caller) -> pb.NamespaceStats:
    return (await acme(pb.StatsRequest(namespace=USER))).namespaces[0]


async def all_of(*tasks: Awaitable[None]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await asyncio.gather(*tasks)


async def test_an_embedder_takes_anothers_place_while_everybody_reads_and_writes(
    memory: Callable[[MemoryConfig], MemoryService], reembed: Reembed, provider: EmbeddingProvider, database: Database
) -> None:
    async with acme_of(memory(MemoryConfig())) as acme:
        await fill(acme)
    provider.batches = 1  # The first 64 records, then it waits.
    changed = memory(config())
    is_done = asyncio.Event()
    embedders: set[str] = set()

    async def read(acme: Caller, first: int) -> None:
        number = first
        while not is_done.is_set():
            number = (number + 7) % RECORDS
            embedder, ids = await found(acme, f"topic{number}")
            assert f"r{number:04}" in ids
            embedders.add(embedder)

    async def write(acme: Caller) -> None:
        for number in itertools.takewhile(lambda _: not is_done.is_set(), range(1, 400)):
            again = number % RECORDS
            texts = {f"w{number:04}": f"late{number} said once", f"r{again:04}": f"topic{again} said once"}
            await acme.write(USER, **texts)
            assert f"w{number:04}" in (await found(acme, f"late{number}"))[1]

    async def change(acme: Caller) -> None:
        running = asyncio.create_task(reembed(config()))
        await provider.waits.wait()
        before = await stats(acme)
        assert (before.embedder, before.next_embedder, before.next_embedded_count >= 64) == (
            "lexical",
            "test/small",
            True,
        )
        await found(acme, "topic1")
        embedders.clear()
        provider.goes_on.set()
        assert await running == 0
        assert (await found(acme, "topic1"))[0] == "test/small"
        is_done.set()

    # One service with the new configuration, and one as in a process not restarted yet.
    async with acme_of(changed) as acme, acme_of(memory(MemoryConfig())) as other:
        await all_of(change(acme), read(acme, 0), read(other, 3), write(other))
        after = await stats(acme)
        assert (after.embedder, after.dimension, after.next_embedder) == ("test/small", SIZE, "")
    assert "test/small" in embedders
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT count(embedding), count(*) - count(embedding_2) FROM memory.records")
        assert await cursor.fetchone() == (0, 0)


async def test_a_change_of_embedder_goes_on_after_the_process_was_killed(
    memory: Callable[[MemoryConfig], MemoryService], database_url: str, tmp_path: Path
) -> None:
    async with acme_of(memory(MemoryConfig())) as acme:
        await fill(acme)
    provider = embedding_provider.make(batches=1)
    async with embedding_provider.serving(provider) as (served, way):
        keys = Path(served.mesh_address.removeprefix("unix:")).parent
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(WORKER), database_url, served.mesh_address, str(keys)
        )
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await provider.waits.wait()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        provider.goes_on.set()
        database = await Database.open(database_url, 4)
        store = await PgvectorStore.open(database)
        async with acme_of(MemoryService(config(), database, store, way)) as acme:
            half_way = await stats(acme)
            assert (half_way.embedder, half_way.next_embedded_count) == ("lexical", 64)
            assert await Reembedding(database, store, Choice(config(), way)).bring_all() == 0
            embedder, ids = await found(acme, "topic99")
            assert (embedder, "r0099" in ids) == ("test/small", True)
        await database.close()
    # Vectors stored before the kill are not made again; those in flight may be.
    assert len(provider.background_texts) <= RECORDS + 64
    assert len(set(provider.background_texts)) == RECORDS


async def test_of_several_processes_one_makes_the_vectors_and_it_may_be_taken_back(
    memory: Callable[[MemoryConfig], MemoryService],
    reembed: Reembed,
    provider: EmbeddingProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reembedding, "_LOCK_SECONDS", 0.02)
    async with acme_of(memory(MemoryConfig())) as acme:
        await fill(acme, 20)
        await acme.write(USER, wordless="?!")
        assert await asyncio.gather(*(reembed(config()) for _ in range(3))) == [0, 0, 0]
        assert len(provider.background_texts) == 21
        assert (await found(acme, "topic3"))[0] == "test/small"
        assert await reembed(config("test/large", SIZE)) == 0
        assert (await found(acme, "topic3"))[0] == "test/large"
        assert await reembed(MemoryConfig()) == 0
        assert (await found(acme, "topic3"))[0] == "lexical"
        assert (await found(acme, "topic3"))[1][0] == "r0003"


async def test_a_change_that_is_called_off_halfway_leaves_nothing_behind(
    memory: Callable[[MemoryConfig], MemoryService], reembed: Reembed, provider: EmbeddingProvider
) -> None:
    async with acme_of(memory(MemoryConfig())) as acme:
        await fill(acme, 80)
        provider.batches = 1
        running = asyncio.create_task(reembed(config()))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await provider.waits.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        provider.goes_on.set()
        assert (await stats(acme)).next_embedder == "test/small"
        assert await reembed(MemoryConfig()) == 0
        after = await stats(acme)
        assert (after.embedder, after.next_embedder, after.next_embedded_count) == ("lexical", "", 0)
        assert (await found(acme, "topic3"))[1][0] == "r0003"


async def test_a_write_goes_on_while_the_next_embedder_fails_and_its_vector_is_made_up_for(
    memory: Callable[[MemoryConfig], MemoryService], reembed: Reembed, provider: EmbeddingProvider
) -> None:
    async with acme_of(memory(MemoryConfig())) as acme:
        await fill(acme, 3)
        provider.batches = 0
        running = asyncio.create_task(reembed(config()))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await provider.waits.wait()
        provider.fails = True
        await acme.write(USER, a_late="late word", z_late="late word")
        provider.fails = False
        provider.goes_on.set()
        assert await running == 0
        embedder, ids = await found(acme, "late word")
        assert (embedder, set(ids[:2])) == ("test/small", {"a_late", "z_late"})


async def test_namespaces_of_different_embedders_are_searched_together_each_by_its_own(
    memory: Callable[[MemoryConfig], MemoryService],
) -> None:
    async with acme_of(memory(config(namespace=GUIDE))) as acme:
        await acme.write(USER, mine="green tea")
        await acme.write(GUIDE, theirs="green tea")
        for mode in (pb.SEARCH_MODE_VECTOR, pb.SEARCH_MODE_HYBRID):
            response = await acme(pb.SearchRequest(namespaces=[USER, GUIDE], query="green tea", mode=mode))
            assert {hit.record.record_id for hit in response.hits} == {"mine", "theirs"}
            assert response.embedder == "lexical, test/small"
        assert await acme.ingest(("a.md", b"# Tea\n\nblack tea")) == pb.IngestResponse(
            document_count=1, written_chunk_count=1
        )
        assert len(await acme.search("black tea", GUIDE)) == 2


async def test_what_a_providers_embedder_cannot_do_is_an_error_of_its_own(
    memory: Callable[[MemoryConfig], MemoryService], provider: EmbeddingProvider, database: Database, store: Store
) -> None:
    async def refused(service: MemoryService) -> AgentShellError:
        async with acme_of(service) as acme:
            return await acme.refused(pb.WriteRequest(namespace=USER, record=pb.Record(text="tea")))

    wrong = await refused(memory(config(dimension=SIZE + 1)))
    assert (wrong.reason, wrong.metadata["fix"]) == (error_pb2.ERROR_REASON_CONFIG_INVALID, f"dimension = {SIZE}")
    async with acme_of(memory(config("test/large", 20, GUIDE))) as acme:  # It has 512 dimensions, and can make fewer.
        await acme.write(GUIDE, tea="green tea")
    async with acme_of(MemoryService(config(), database, store)) as acme:  # There is no Provider service.
        error = await acme.refused(pb.WriteRequest(namespace="user/bob", record=pb.Record(text="tea")))
        assert (error.reason, error.metadata["key"]) == (error_pb2.ERROR_REASON_CONFIG_INVALID, "memory.namespaces")
    provider.fails = True
    async with acme_of(memory(config())) as acme:
        error = await acme.refused(pb.WriteRequest(namespace="user/carl", record=pb.Record(text="tea")))
        assert error.reason == error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE
