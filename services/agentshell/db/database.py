"""A Postgres database: pooled connections, transactions, and migrations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import psycopg
import psycopg.pq
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import AsyncRowFactory, Row, TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from agentshell.db import migration
from agentshell.db.shares import Shares
from agentshell.db.statement import Statement, Statements
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

Connection: TypeAlias = psycopg.AsyncConnection[TupleRow]

_CONNECT_TIMEOUT_SECONDS = 5
_ACQUIRE_TIMEOUT_SECONDS = 10.0
_CLOSE_TIMEOUT_SECONDS = 5.0
_RECONNECT_TIMEOUT_SECONDS = 1.0  # Each retry doubles the wait: with a longer limit, recovery could take minutes.
_IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 5.0  # A hung process must not keep its locks from the others.
# How a connection in use is lost. The driver does not class Postgres' idle-transaction timeout as an OperationalError.
_LOSSES = (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout)
_MIGRATION_LOCK = 0x6B666D2E6462  # "kfm.db": one lock for all schemas, because they share extensions.


class _BinaryCursor(psycopg.AsyncCursor[Row]):
    """Fetches rows in binary format: bytea, timestamps and numbers need no parsing."""

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], *, row_factory: AsyncRowFactory[Row] | None = None
    ) -> None:
        if row_factory is None:
            super().__init__(connection)
        else:
            super().__init__(connection, row_factory=row_factory)
        self.format = psycopg.pq.Format.BINARY


class Database:
    """A pool of at most `max_connections` connections; create it with `open`.

    Connections are in autocommit mode, return rows in binary format, and prepare a statement once it has run five
    times. Each `execute` takes one statement. Operational errors (a lost connection, a deadlock, ten seconds without a
    free connection, a transaction idle for five) leave `connection` and `transaction` as DATABASE_UNAVAILABLE, with the
    driver's error as the cause. Connections recover within a second of Postgres.
    """

    def __init__(self, url: str, conninfo: str, max_connections: int) -> None:
        self.url = url
        self._conninfo = conninfo
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=max_connections,
            timeout=_ACQUIRE_TIMEOUT_SECONDS,
            reconnect_timeout=_RECONNECT_TIMEOUT_SECONDS,
            reconnect_failed=_try_again,
            configure=_configure,
            kwargs={"autocommit": True, "cursor_factory": _BinaryCursor},
            name="agentshell",
            open=False,
        )
        self._statements: list[Statement] = []
        # Work that may hold connections for long gets at most half of them per tenant.
        self.shares = Shares(max(1, max_connections // 2))

    @classmethod
    async def open(cls, url: str, max_connections: int) -> Database:
        """Opens the database of a libpq URL.

        Raises DATABASE_UNAVAILABLE when it cannot be reached within five seconds, CONFIG_INVALID for a malformed URL.
        """
        try:
            conninfo = make_conninfo(url, application_name="agentshell", connect_timeout=_CONNECT_TIMEOUT_SECONDS)
        except psycopg.ProgrammingError:
            # The driver's message may repeat the URL's password.
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                "database.url is not a Postgres URL: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
                metadata={"key": "database.url", "fix": "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"},
            ) from None
        database = cls(url, conninfo, max_connections)
        await (await database.dedicated()).close()  # The pool would retry without saying what is wrong.
        await database._pool.open()
        return database

    async def close(self) -> None:
        """Closes the pool and the statements; connections in use are closed when they are returned."""
        for statement in self._statements:
            await statement.close()
        await self._pool.close(_CLOSE_TIMEOUT_SECONDS)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A pooled connection; each statement is a transaction of its own."""
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        try:
            async with self._pool.connection() as connection:
                if task and task.cancelling() > cancellations:
                    # Python 3.11's wait_for, which the pool uses, drops a cancellation that comes with the connection.
                    raise asyncio.CancelledError
                yield connection
        except _LOSSES as error:
            raise self._unavailable(error) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """A pooled connection in a transaction, committed at the end and rolled back on an exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def dedicated(self) -> Connection:
        """Returns a connection outside the pool, for LISTEN or a single writer; the caller closes it."""
        try:
            return await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True, cursor_factory=_BinaryCursor)
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error

    def statement(self, query: str) -> Statement:
        """Returns a statement with a connection of its own, opened when it first runs."""
        self._statements.append(Statement(self.dedicated, query))
        return self._statements[-1]

    def statements(self, query: str, connections: int) -> Statements:
        """Returns a statement with this many connections of its own, each opened when it is first needed."""
        return Statements([self.statement(query) for _ in range(connections)])

    async def migrate(self, schema: str, package: str) -> None:
        """Applies the `NNNN_name.sql` files in the Python package `package` that `schema` does not have yet.

        Each runs once, in order, with `schema, public` as its search path. All run in one transaction, so none may
        contain what Postgres refuses there (CREATE INDEX CONCURRENTLY). Processes that start together take turns.
        Raises CONFIG_INVALID if an applied file has changed or is missing, or if a file fails.
        """
        table = sql.Identifier(schema, "migration")
        insert = sql.SQL("INSERT INTO {} (number, name, digest) VALUES (%s, %s, %s)").format(table)
        step = "its preparation"
        try:
            async with self.transaction() as connection:
                cursor = psycopg.AsyncCursor(connection)  # Not a binary one, which takes one statement at a time.
                await cursor.execute(_preparation(schema, table))
                await cursor.execute(sql.SQL("SELECT number, digest FROM {} ORDER BY number").format(table))
                applied = [(int(number), str(digest)) for number, digest in await cursor.fetchall()]
                for file in migration.pending(migration.read(package), applied):
                    step = file.file
                    await cursor.execute(file.sql)
                    await cursor.execute(insert, [file.number, file.name, file.digest])
        except (psycopg.Error, ValueError) as error:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"cannot migrate schema {schema} by {package}, at {step}: {error}; fix that, and start again",
                metadata={"key": "database.url", "schema": schema},
                cause=error,
            ) from error

    def _unavailable(self, error: psycopg.Error) -> AgentShellError:
        target = conninfo_to_dict(self._conninfo)
        host, name = str(target.get("host", "localhost")), str(target.get("dbname", ""))
        advice = (
            "" if error.sqlstate else "; check that it runs, and that database.url is right (empty: the bundled one)"
        )
        if isinstance(error, PoolTimeout):
            advice = "; all are in use: raise database.max_connections, or Postgres is down"
        return AgentShellError(
            error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE,
            f"Postgres at {host}, database {name}: {' '.join(str(error).split())}{advice}",
            metadata={"host": host, "database": name},
            cause=error,
        )


async def _configure(connection: Connection) -> None:
    milliseconds = str(round(_IDLE_IN_TRANSACTION_TIMEOUT_SECONDS * 1000))
    await connection.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, false)", [milliseconds])


async def _try_again(pool: AsyncConnectionPool[Connection]) -> None:
    """Makes the pool reconnect for waiting requests: once it has given up, only a new request would make it try."""
    if pool.get_stats()["requests_waiting"]:
        await pool.check()


def _preparation(schema: str, table: sql.Identifier) -> sql.Composed:
    return sql.SQL(
        "SELECT pg_advisory_xact_lock({lock});"
        "CREATE SCHEMA IF NOT EXISTS {schema};"
        "SET LOCAL search_path = {schema}, public;"
        "CREATE TABLE IF NOT EXISTS {table} (number integer PRIMARY KEY, name text NOT NULL,"
        " digest text NOT NULL, apply_time timestamptz NOT NULL DEFAULT now())"
    ).format(lock=_MIGRATION_LOCK, schema=sql.Identifier(schema), table=table)
