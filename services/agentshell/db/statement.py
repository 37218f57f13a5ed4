"""A statement with a connection of its own, for hot paths: it takes a third of a cursor's CPU time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_NAME = b"statement"
_CANCEL_TIMEOUT_SECONDS = 1.0
_Connection = psycopg.AsyncConnection[Any]


class Statement:
    """A statement with parameters `$1, ...`, prepared once per connection. A run connects first if necessary.

    `Database.statement` creates it. Parameters and columns are in Postgres' binary format (binary.py). Runs one at a
    time.
    """

    def __init__(self, connect: Callable[[], Awaitable[_Connection]], query: str) -> None:
        self._connect = connect
        self._query = query
        self._wire: _Wire | None = None
        self._running = asyncio.Lock()

    async def run(self, parameters: Sequence[bytes | None]) -> PGresult:
        """Runs it and returns the result. Raises DATABASE_UNAVAILABLE, and psycopg.Error if Postgres refuses it."""
        async with self._running:
            try:
                if self._wire is None or self._wire.is_closed:
                    self._wire = await self._prepared()
                return await self._wire.run(parameters)
            except BaseException as error:
                await self.close()  # Even when cancelled: the next run would receive this one's result.
                if isinstance(error, psycopg.OperationalError):
                    raise _lost(error) from error
                raise

    async def close(self) -> None:
        """Disconnects; the next run connects again."""
        if self._wire is not None:
            wire, self._wire = self._wire, None
            await wire.close()

    async def _prepared(self) -> _Wire:
        await self.close()
        self._wire = _Wire(await self._connect())
        await self._wire.prepare(self._query)
        return self._wire


class Statements:
    """A statement on a few connections: each run takes a free one, or waits for the first to become free.

    `Database.statements` creates it.
    """

    def __init__(self, statements: Sequence[Statement]) -> None:
        self._free = asyncio.LifoQueue[Statement]()  # Most recently used first: the others need not even connect.
        for statement in statements:
            self._free.put_nowait(statement)

    async def run(self, parameters: Sequence[bytes | None]) -> PGresult:
        """See `Statement.run`."""
        statement = await self._free.get()
        try:
            return await statement.run(parameters)
        finally:
            self._free.put_nowait(statement)


class _Wire:
    """A libpq connection. Notices at once when the server hangs up while nothing runs."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._is_running = False
        self._input: asyncio.Future[None] | None = None  # Set when input arrives for a run.
        self.is_closed = False
        self._socket = connection.fileno()
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    async def prepare(self, query: str) -> None:
        self._pgconn.send_prepare(_NAME, query.encode())
        await self._result()

    async def run(self, parameters: Sequence[bytes | None]) -> PGresult:
        formats = [Format.BINARY] * len(parameters)
        self._pgconn.send_query_prepared(_NAME, parameters, formats, result_format=Format.BINARY)
        return await self._result()

    async def close(self) -> None:
        is_left = not self.is_closed and self._pgconn.transaction_status == TransactionStatus.ACTIVE
        self._end()
        if is_left:  # Otherwise it goes on for nobody, waiting for locks and holding some.
            with contextlib.suppress(psycopg.Error):
                await self._connection.cancel_safe(timeout=_CANCEL_TIMEOUT_SECONDS)
        await self._connection.close()

    async def _result(self) -> PGresult:
        self._is_running = True
        try:
            while self._pgconn.flush():  # The query is more than the socket takes at once.
                await self._writable()
            last: PGresult | None = None
            while (result := await self._next()) is not None:
                last = result
        finally:
            self._is_running = False
        if last is not None and last.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            return last
        if last is None or self.is_closed:
            raise psycopg.OperationalError("the server closed the connection")
        raise error_from_result(last)

    async def _next(self) -> PGresult | None:
        """Returns the next of a run's results; None after the last."""
        while self._pgconn.is_busy() and not self.is_closed:
            self._input = asyncio.get_running_loop().create_future()
            await self._input
        return self._pgconn.get_result()

    async def _writable(self) -> None:
        loop, writable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(self._socket, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.OperationalError:
            self._end()
        if not self._is_running:  # To an idle client, the server speaks only to hang up.
            self._end()
        if self._input is not None and not self._input.done():
            self._input.set_result(None)

    def _end(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().remove_reader(self._socket)


def _lost(error: psycopg.OperationalError) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE,
        f"Postgres did not answer: {' '.join(str(error).split())}; check that it runs, then try again",
        cause=error,
    )
