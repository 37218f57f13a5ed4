"""A pack's knowledge in real memory: what has not changed is left alone, even after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from tests.contract.serving import member
from tests.contract.test_personality import BOUND_SECONDS, WHOLE, unread, write

from agentshell.db.database import Database
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.mesh import channel
from agentshell.mesh.config import MemoryConfig, PersonalityConfig
from agentshell.personality.service import PersonalityService
from kfm.memory.v1 import memory_service_pb2 as memory_pb
from kfm.memory.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server


class Memory(MemoryService):
    """The Memory service, with the results of its ingestions."""

    ingested: list[memory_pb.IngestResponse]

    async def Ingest(  # noqa: N802 - the RPC's name
        self,
        request_iterator: AsyncIterator[memory_pb.IngestRequest],
        context: grpc.aio.ServicerContext[memory_pb.IngestRequest, memory_pb.IngestResponse],
    ) -> memory_pb.IngestResponse:
        response = await super().Ingest(request_iterator, context)
        self.ingested.append(response)
        return response


@asynccontextmanager
async def loaded(packs: Path, memory: Memory) -> AsyncGenerator[PersonalityService]:
    """Runs a new service over the packs, and yields it once its knowledge is in memory."""
    async with member() as served, channel.connect(served.mesh_address, served.keyring) as to_memory:
        served.server.add(
            "kfm.memory.v1.MemoryService", lambda server: add_MemoryServiceServicer_to_server(memory, server)
        )
        service = PersonalityService(PersonalityConfig(directories=(packs,)), to_memory)
        async with await served.start(), asyncio.timeout(BOUND_SECONDS):
            await service.start()
            await service.knowledge_ready()
            yield service
            await service.stop()


async def test_only_documents_that_changed_are_taken_in_again(tmp_path: Path, database: Database) -> None:
    memory = Memory(MemoryConfig(), database, await PgvectorStore.open(database))
    memory.ingested = []
    folder = write(tmp_path / "packs" / "scribe", WHOLE, same="# Same", other="# Other", gone="# Gone")
    async with loaded(tmp_path / "packs", memory):
        pass
    async with loaded(tmp_path / "packs", memory) as service:
        write(folder, WHOLE, "Another prompt.")
        await service.reload()
        async with unread(service):
            write(folder, WHOLE, other="# Another")
            (folder / "knowledge" / "gone.md").unlink()
        await service.reload()
        await service.knowledge_ready()
    assert [
        (told.document_count, told.unchanged_document_count, told.written_chunk_count, told.forgotten_chunk_count)
        for told in memory.ingested
    ] == [(3, 0, 3, 0), (3, 3, 0, 0), (2, 1, 1, 2)]
