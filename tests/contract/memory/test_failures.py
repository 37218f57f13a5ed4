"""A fault or an overload gives an error that says what is wrong; nothing is lost, and the service recovers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import grpc.aio
import psycopg
import pytest
from psycopg import sql
from tests.contract.memory.caller import TIMEOUT_SECONDS, USER, Caller
from tests.contract.memory.conftest import CONFIG, serving
from tests.contract.serving import member

from agentshell.db import binaries
from agentshell.db import database as database_module
from agentshell.db.database import Database
from agentshell.db.server import PostgresServer
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.store import Space
from agentshell.mesh.call import Principal
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb
from kfm.memory.v1 import memory_service_pb2_grpc

UNAVAILABLE = error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE
WRITERS, WRITES, ATTEMPTS = 4, 10, 200
DISK_BYTES = 40 * 1024 * 1024


async def test_vectors_too_long_for_an_index_are_refused_by_their_length(database: Database) -> None:
    store = await PgvectorStore.open(database)
    with pytest.raises(AgentShellError, match=r"'large' makes vectors of 16000 numbers, .* takes 4000") as caught:
        await store.prepare(Space("large", 16_000))
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    await store.prepare(Space("small", 4_000))
    await store.prepare(Space("small", 4_000))


async def test_text_that_is_not_utf8_is_refused_and_the_next_call_is_served(database: Database) -> None:
    record = pb.Record(record_id="r", text="tea")
    record.metadata.update({"name": "????"})
    raw = pb.WriteRequest(namespace=USER, record=record).SerializeToString().replace(b"????", b"\xff\xfe??")
    service = MemoryService(CONFIG, database, await PgvectorStore.open(database))
    async with member() as served:
        served.server.add(
            "kfm.memory.v1.MemoryService",
            lambda to: memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(service, to),
        )
        async with await served.start() as channel:
            credential = served.keyring.mint(Principal("acme", "ann"))
            write = cast("Any", channel).unary_unary("/kfm.memory.v1.MemoryService/Write")  # Sends raw bytes.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await write(raw, metadata=(("authorization", f"Bearer {credential}"),), timeout=TIMEOUT_SECONDS)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "UTF-8" in (caught.value.details() or "")
            acme = Caller(memory_service_pb2_grpc.MemoryServiceStub(channel), credential)
            assert await acme.ids(USER) == []


async def test_a_write_that_postgres_ends_is_made_once_by_trying_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_ACQUIRE_TIMEOUT_SECONDS", 0.5)
    server = await PostgresServer.start(tmp_path)
    database = await Database.open(server.url, WRITERS)
    begun, restarted = asyncio.Event(), asyncio.Event()
    async with serving(MemoryService(CONFIG, database, await PgvectorStore.open(database))) as caller:
        acme, failures = caller("acme"), list[int]()

        async def write(writer: int) -> None:
            for number in range(WRITES):
                name = f"w{writer}n{number}"
                request = pb.WriteRequest(namespace=USER, record=pb.Record(record_id=name, text="tea"), request_id=name)
                for _ in range(ATTEMPTS):
                    try:
                        assert (await acme(request)).record.version == 1
                        break
                    except AgentShellError as error:
                        failures.append(error.reason)
                        await restarted.wait()
                else:
                    pytest.fail(f"{name} was never written")
                if number == 1:
                    begun.set()

        writers = asyncio.gather(*(write(writer) for writer in range(WRITERS)))
        await begun.wait()
        await server.stop()
        refused = await acme.refused(pb.SearchRequest(namespaces=[USER], query="tea"))
        assert refused.reason == UNAVAILABLE
        server = await PostgresServer.start(tmp_path)
        restarted.set()
        await writers
        assert set(failures) == {UNAVAILABLE}
        assert len(await acme.ids(USER)) == WRITERS * WRITES
        assert len(await acme.search("tea", limit=100)) == WRITERS * WRITES
    await database.close()
    await server.stop()


async def test_where_all_connections_are_in_use_the_error_says_so_and_later_it_works(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_ACQUIRE_TIMEOUT_SECONDS", 0.2)
    database = await Database.open(database_url, 1)
    async with serving(MemoryService(CONFIG, database, await PgvectorStore.open(database))) as caller:
        acme = caller("acme")
        await acme.write(r="tea")
        async with database.connection():
            refused = await acme.refused(pb.GetRequest(namespace=USER, record_id="r"))
            assert refused.reason == UNAVAILABLE
            assert "all are in use" in refused.message
        assert await acme.search("tea") == ["r"]
    await database.close()


@pytest.fixture
def small_disk() -> Generator[Path]:
    """A file system of DISK_BYTES that Postgres's user owns."""
    if os.geteuid() != 0 or os.environ.get("AGENTSHELL_TEST_DATABASE_URL"):
        pytest.skip("only root mounts a tmpfs, for the bundled Postgres")
    directory = Path(tempfile.mkdtemp(prefix="agentshell-disk-"))
    account = binaries.account(directory / "none")
    assert account is not None
    options = f"size={DISK_BYTES},mode=0700,uid={account.uid},gid={account.gid}"
    directory.chmod(0o755)
    mounting = subprocess.run(
        [shutil.which("mount") or "", "-t", "tmpfs", "-o", options, "tmpfs", directory],
        capture_output=True,
        check=False,
    )
    if mounting.returncode:
        directory.rmdir()
        pytest.skip(f"no tmpfs can be mounted here: {mounting.stderr.decode().strip()}")
    yield directory
    subprocess.run([shutil.which("umount") or "", "--lazy", directory], check=True)
    directory.rmdir()


async def test_a_full_disk_is_said_and_what_was_written_stays(postgres_url: str, small_disk: Path) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(small_disk)))
        await connection.execute("CREATE DATABASE on_small_disk TABLESPACE small")
        try:
            await _fill(postgres_url.replace("/postgres?", "/on_small_disk?"), small_disk / "ballast")
        finally:
            await connection.execute("DROP DATABASE on_small_disk WITH (FORCE)")
            await connection.execute("DROP TABLESPACE small")


async def _fill(url: str, ballast: Path) -> None:
    database = await Database.open(url, 2)
    async with serving(MemoryService(CONFIG, database, await PgvectorStore.open(database))) as caller:
        acme = caller("acme")
        await acme.write(before="tea")
        await asyncio.to_thread(ballast.write_bytes, bytes(shutil.disk_usage(ballast.parent).free))
        batch = pb.BatchWriteRequest(
            namespace=USER, records=[pb.Record(record_id=f"r{n}", text=f"tea {n} " * 500) for n in range(100)]
        )
        refused = await acme.refused(batch)
        assert refused.reason == UNAVAILABLE
        assert "No space left on device" in refused.message
        assert await acme.ids(USER) == ["before"]
        await asyncio.to_thread(ballast.unlink)
        await acme(batch)
        assert len(await acme.ids(USER)) == 101
    await database.close()
