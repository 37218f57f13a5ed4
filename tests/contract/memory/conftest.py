"""The Memory service over a real server and a real database; tests of every store run once for each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.contract.memory.caller import Caller
from tests.contract.memory.stores import STORES
from tests.contract.serving import member

from agentshell.db.database import Database
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.store import Store
from agentshell.mesh import call
from agentshell.mesh.call import Principal
from agentshell.mesh.config import MemoryConfig
from kfm.memory.v1 import memory_service_pb2_grpc

CONFIG = MemoryConfig(chunk_characters=300, chunk_overlap_characters=40)


# What any store must do. The rest of the suite is about what is in Postgres with every store.
OF_EVERY_STORE = ("copies", "expiry", "forget", "ingest", "records", "search", "search_choice", "tenants")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test of every store once for each."""
    if "store" in metafunc.fixturenames and metafunc.definition.path.stem.removeprefix("test_") in OF_EVERY_STORE:
        metafunc.parametrize("store", list(STORES), indirect=True)


@pytest.fixture
async def store(request: pytest.FixtureRequest, database: Database) -> AsyncGenerator[Store]:
    """The default store, or each one."""
    async with STORES[getattr(request, "param", "pgvector")](database) as store:
        yield store


@pytest.fixture
async def caller(database: Database, store: Store) -> AsyncGenerator[Callable[[str], Caller]]:
    """Makes callers by tenant."""
    async with serving(MemoryService(CONFIG, database, store)) as caller:
        yield caller


@pytest.fixture
async def elsewhere(database_url: str, store: Store) -> AsyncGenerator[Callable[[str], Caller]]:
    """Makes callers by tenant, to another process's service over the same memory."""
    database = await Database.open(database_url, 4)
    async with serving(MemoryService(CONFIG, database, store)) as caller:
        yield caller
    await database.close()


@asynccontextmanager
async def serving(memory: MemoryService) -> AsyncGenerator[Callable[[str], Caller]]:
    """Serves a service, and yields what makes callers by tenant."""
    async with member() as served:
        served.server.add(
            "kfm.memory.v1.MemoryService",
            lambda to: memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(memory, to),
        )
        async with await served.start() as channel:
            stub = memory_service_pb2_grpc.MemoryServiceStub(channel)
            yield lambda tenant: Caller(stub, served.keyring.mint(Principal(tenant, "ann")))


@pytest.fixture
def acme(caller: Callable[[str], Caller]) -> Caller:
    return caller("acme")


@pytest.fixture
def globex(caller: Callable[[str], Caller]) -> Caller:
    return caller("globex")


@pytest.fixture
def shared(caller: Callable[[str], Caller]) -> Caller:
    return caller(call.SHARED_TENANT)
