"""The Memory service over a real server and a real database, once for each store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import pytest
from tests.contract.memory.caller import Caller
from tests.contract.serving import member

from agentshell.db.database import Database
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.store import Store
from agentshell.mesh import call
from agentshell.mesh.call import Principal
from agentshell.mesh.config import MemoryConfig
from kfm.memory.v1 import memory_service_pb2_grpc

CONFIG = MemoryConfig(chunk_characters=300, chunk_overlap_characters=40)


@pytest.fixture(params=["pgvector"])
async def store(database: Database) -> Store:
    """Each store; what else there will be is one more parameter."""
    return await PgvectorStore.open(database)


@pytest.fixture
async def caller(store: Store) -> AsyncGenerator[Callable[[str], Caller]]:
    """Makes a caller of a tenant's."""
    memory = MemoryService(CONFIG, store)
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
