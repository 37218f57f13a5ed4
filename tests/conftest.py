"""What every test may ask for: a Postgres of its own run, and an empty database in it."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from agentshell.db.database import Database
from agentshell.db.server import PostgresServer

_MAX_CONNECTIONS = 8


@pytest.fixture(scope="session")
async def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str]:
    """The Postgres of this run: the bundled one, or AGENTSHELL_TEST_DATABASE_URL."""
    if url := os.environ.get("AGENTSHELL_TEST_DATABASE_URL"):
        yield url
        return
    server = await PostgresServer.start(tmp_path_factory.mktemp("pg"))
    yield server.url
    await server.stop()


@pytest.fixture
async def database_url(postgres_url: str) -> AsyncGenerator[str]:
    """The URL of an empty database of this test's own."""
    url = await create_database(postgres_url)
    yield url
    name = str(conninfo_to_dict(url)["dbname"])
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    """An open database, empty."""
    database = await Database.open(database_url, _MAX_CONNECTIONS)
    yield database
    await database.close()


async def create_database(postgres_url: str) -> str:
    """Makes an empty database on the server and returns its URL."""
    name = f"test_{uuid.uuid4().hex}"
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    base, _, query = postgres_url.partition("?")
    path = f"/{conninfo_to_dict(postgres_url).get('dbname', '')}"
    return f"{base.removesuffix(path)}/{name}" + (f"?{query}" if query else "")
