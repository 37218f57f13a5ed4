"""The database as its users see it, over a real Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

from agentshell.db import database as database_module
from agentshell.db.database import Database
from agentshell.db.server import PostgresServer
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_MIGRATIONS = {
    "0001_first.sql": "CREATE TABLE step (at integer PRIMARY KEY); INSERT INTO step VALUES (1);",
    "0002_second.sql": "INSERT INTO step SELECT max(at) + 1 FROM step;  -- 100% after the first",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A package with two migrations, named as its directory."""
    path = tmp_path / f"migrations_of_{abs(hash(request.node.nodeid))}"
    path.mkdir()
    for name, statements in _MIGRATIONS.items():
        (path / name).write_text(statements)
    monkeypatch.syspath_prepend(tmp_path)
    sys.path_importer_cache.pop(str(tmp_path), None)
    return path


async def _rows(database: Database, query: str) -> list[TupleRow]:
    async with database.connection() as connection:
        return await (await connection.execute(query.encode())).fetchall()


async def test_migrations_apply_once_and_in_order(database: Database, package: Path) -> None:
    await database.migrate("part", package.name)
    await database.migrate("part", package.name)
    assert await _rows(database, "SELECT at FROM part.step ORDER BY at") == [(1,), (2,)]
    recorded = await _rows(database, "SELECT number, name, length(digest) FROM part.migration ORDER BY number")
    assert recorded == [(1, "first", 64), (2, "second", 64)]


async def test_processes_that_migrate_at_once_take_turns(database_url: str, package: Path) -> None:
    databases = [await Database.open(database_url, 2) for _ in range(4)]
    try:
        await asyncio.gather(*(database.migrate("part", package.name) for database in databases))
        assert await _rows(databases[0], "SELECT at FROM part.step ORDER BY at") == [(1,), (2,)]
    finally:
        for database in databases:
            await database.close()


async def test_a_migration_that_changed_stops_the_start(database: Database, package: Path) -> None:
    await database.migrate("part", package.name)
    (package / "0001_first.sql").write_text("SELECT 1")
    with pytest.raises(AgentShellError, match=r"schema part .* 0001_first\.sql differs") as caught:
        await database.migrate("part", package.name)
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID


async def test_a_migration_that_fails_leaves_nothing_and_is_named(database: Database, package: Path) -> None:
    (package / "0002_second.sql").write_text("INSERT INTO nowhere VALUES (1)")
    with pytest.raises(AgentShellError, match=r'0002_second\.sql: relation "nowhere"') as caught:
        await database.migrate("part", package.name)
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert await _rows(database, "SELECT FROM pg_namespace WHERE nspname = 'part'") == []


async def test_a_transaction_is_kept_at_its_end_and_dropped_by_an_exception(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("CREATE TABLE kept (value bytea)")
    with contextlib.suppress(ZeroDivisionError):
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO kept VALUES ('dropped')")
            raise ZeroDivisionError
    async with database.connection() as connection:
        await connection.execute("INSERT INTO kept VALUES (%s)", [b"\x00\xff"])
    assert await _rows(database, "SELECT value FROM kept") == [(b"\x00\xff",)]


async def test_a_dedicated_connection_hears_what_the_pool_notifies(database: Database) -> None:
    async with await database.dedicated() as listener:
        await listener.execute("LISTEN topic")
        async with database.connection() as connection:
            await connection.execute("NOTIFY topic, 'offset 7'")
        heard = [notify.payload async for notify in listener.notifies(timeout=10, stop_after=1)]
    assert heard == ["offset 7"]


async def test_vectors_are_at_hand(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    assert await _rows(database, "SELECT '[1,0]'::vector <=> '[0,1]'::vector") == [(1.0,)]


async def test_a_lost_connection_is_an_error_of_ours_and_the_next_one_works(database: Database) -> None:
    with pytest.raises(AgentShellError, match="terminating connection") as caught:
        async with database.connection() as connection:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert caught.value.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert await _rows(database, "SELECT 1") == [(1,)]


async def test_a_transaction_that_hangs_is_ended_with_an_error_of_ours(database: Database) -> None:
    assert await _rows(database, "SHOW idle_in_transaction_session_timeout") == [("5s",)]

    async def hang() -> None:
        async with database.transaction() as connection, asyncio.timeout(10):
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 10")
            while await _rows(database, f"SELECT FROM pg_stat_activity WHERE pid = {connection.info.backend_pid}"):
                continue
            await connection.execute("SELECT 1")

    # Postgres's message is lost if it arrives together with the answer to the previous statement.
    said = "idle-in-transaction timeout|server closed the connection"
    with pytest.raises(AgentShellError, match=said) as caught:
        await hang()
    assert caught.value.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE


async def test_who_waits_for_a_connection_gets_it_when_postgres_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_RECONNECT_TIMEOUT_SECONDS", 0.0)  # It gives up before Postgres is back.
    server = await PostgresServer.start(tmp_path)
    database = await Database.open(server.url, 1)
    await _rows(database, "SELECT 1")
    await server.stop()
    with pytest.raises(AgentShellError):  # From its old connection.
        await _rows(database, "SELECT 1")
    waiting = asyncio.create_task(_rows(database, "SELECT 1"))
    server = await PostgresServer.start(tmp_path)
    assert await waiting == [(1,)]
    await database.close()
    await server.stop()


async def test_who_is_cancelled_as_a_connection_comes_is_cancelled(database_url: str) -> None:
    """Python 3.11's `wait_for` loses the cancellation at some of these moments; the task would then wait forever."""
    database = await Database.open(database_url, 1)

    async def use() -> None:
        async with database.connection():
            await asyncio.Event().wait()

    try:
        for ticks in range(12):
            async with database.connection():
                using = asyncio.create_task(use())
                for _ in range(12):
                    await asyncio.sleep(0)  # Until it waits for the connection in use here.
            for _ in range(ticks):
                await asyncio.sleep(0)
            using.cancel()
            await asyncio.wait([using], timeout=10)
            assert using.cancelled(), f"after {ticks} ticks"
    finally:
        await database.close()


async def test_a_database_that_is_not_there_says_where_it_looked_and_what_to_do() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # Bound but not listening: connections are refused.
        port = bound.getsockname()[1]
        with pytest.raises(AgentShellError, match=r"127\.0\.0\.1, database turns: .*check that it runs") as caught:
            await Database.open(f"postgresql://ann:secret@127.0.0.1:{port}/turns", 2)
    assert caught.value.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE
    assert caught.value.metadata == {"host": "127.0.0.1", "database": "turns"}
    assert "secret" not in caught.value.message


async def test_a_malformed_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(AgentShellError) as caught:
        await Database.open("host=127.0.0.1 ann:secret@elsewhere", 2)
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert caught.value.metadata["key"] == "database.url"
    assert "secret" not in f"{caught.value.message}{caught.value.__cause__}"
