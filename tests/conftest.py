"""Fixtures for all tests: one Postgres server for each run, and an empty database on it for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from agentshell.db.database import Database
from agentshell.db.server import PostgresServer

# Every run tries the same examples, however slow the machine: no change, no new failure. See `make properties`.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("others", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")

_MAX_CONNECTIONS = 8
# Those of all services. Copying a database that has them takes a third of the time that creating them does.
_SCHEMAS = ("gateway", "log", "memory", "provider", "runtime", "tool")


@pytest.fixture(scope="session")
async def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str]:
    """The URL of this run's Postgres: the bundled one, or AGENTSHELL_TEST_DATABASE_URL."""
    if url := os.environ.get("AGENTSHELL_TEST_DATABASE_URL"):
        yield url
        return
    server = await PostgresServer.start(tmp_path_factory.mktemp("pg"))
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
        await connection.execute("ALTER SYSTEM SET fsync = off")  # The data need not survive a crash.
        await connection.execute("SELECT pg_reload_conf()")
    yield server.url
    await server.stop()


@pytest.fixture(scope="session")
async def template(postgres_url: str) -> AsyncGenerator[str]:
    """The name of a database that has the schemas but no rows."""
    url = await create_database(postgres_url)
    database = await Database.open(url, 1)
    for schema in _SCHEMAS:
        await database.migrate(schema, f"agentshell.{schema}.migrations")
    await database.close()
    yield _name(url)
    await drop_database(postgres_url, url)


@pytest.fixture
async def database_url(postgres_url: str, template: str) -> AsyncGenerator[str]:
    """The URL of this test's own database, which has no rows yet."""
    url = await create_database(postgres_url, template)
    yield url
    await drop_database(postgres_url, url)


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    """This test's own database, open."""
    database = await Database.open(database_url, _MAX_CONNECTIONS)
    yield database
    await database.close()


async def create_database(postgres_url: str, template: str = "template1") -> str:
    """Creates a database on the server from the template (empty by default) and returns its URL."""
    name = f"test_{uuid.uuid4().hex}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(create)
    base, _, query = postgres_url.partition("?")
    path = f"/{conninfo_to_dict(postgres_url).get('dbname', '')}"
    return f"{base.removesuffix(path)}/{name}" + (f"?{query}" if query else "")


async def drop_database(postgres_url: str, url: str) -> None:
    """Drops a database from the server, even while it is in use."""
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(_name(url)))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(drop)


def _name(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])
