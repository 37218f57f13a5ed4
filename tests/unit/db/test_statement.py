from __future__ import annotations

import asyncio

import psycopg
import pytest

from agentshell.db.binary import bigint
from agentshell.db.database import Connection, Database
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2


async def test_runs_take_turns_and_each_gets_its_answer(database: Database) -> None:
    statement = database.statement("SELECT $1::bigint + 1")
    results = await asyncio.gather(*(statement.run([bigint(number)]) for number in range(20)))
    assert [result.get_value(0, 0) for result in results] == [bigint(number + 1) for number in range(20)]


async def test_values_larger_than_a_socket_takes_at_once_go_there_and_back(database: Database) -> None:
    large = bytes(range(256)) * 40_000
    result = await database.statement("SELECT $1::bytea").run([large])
    assert result.get_value(0, 0) == large


async def test_what_postgres_refuses_is_its_error_and_the_next_run_is_well(database: Database) -> None:
    statement = database.statement("SELECT 1 / $1::bigint")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await statement.run([bigint(0)])
    assert (await statement.run([bigint(1)])).get_value(0, 0) == bigint(1)


async def test_a_run_that_is_given_up_leaves_no_answer_for_the_next(database: Database) -> None:
    statement = database.statement("SELECT $1::bigint, pg_sleep($1::bigint)")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await statement.run([bigint(20)])
    assert (await statement.run([bigint(0)])).get_value(0, 0) == bigint(0)


async def test_a_run_that_is_given_up_waits_no_longer_on_the_server_either(database: Database) -> None:
    statement = database.statement("SELECT pg_advisory_xact_lock($1::bigint)")
    async with database.transaction() as holder, asyncio.timeout(20):
        await holder.execute("SELECT pg_advisory_xact_lock(7)")
        running = asyncio.create_task(statement.run([bigint(7)]))
        while not await waiting(holder):
            pass
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while await waiting(holder):
            pass


async def test_of_several_connections_each_run_has_one_and_one_after_another_they_have_the_same(
    database: Database,
) -> None:
    statements = database.statements("SELECT pg_backend_pid()::bigint, pg_advisory_xact_lock($1::bigint)", 2)
    async with database.transaction() as holder, asyncio.timeout(20):
        await holder.execute("SELECT pg_advisory_xact_lock(7)")
        running = asyncio.create_task(statements.run([bigint(7)]))
        while not await waiting(holder):
            pass
        meanwhile = [(await statements.run([bigint(number)])).get_value(0, 0) for number in (8, 9)]
    assert meanwhile[0] == meanwhile[1] != (await running).get_value(0, 0)


async def waiting(connection: Connection) -> int:
    """Returns the number of sessions that wait for a lock."""
    cursor = await connection.execute(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
        " WHERE datname = current_database() AND NOT granted"
    )
    (count,) = await cursor.fetchone() or (0,)
    return int(count)


async def test_a_connection_that_is_lost_in_a_run_is_unavailable_and_one_lost_before_is_made_again(
    database: Database, database_url: str
) -> None:
    statement = database.statement("SELECT pg_backend_pid()::bigint, pg_sleep($1::bigint)")
    first = (await statement.run([bigint(0)])).get_value(0, 0)
    assert first is not None
    running = asyncio.create_task(statement.run([bigint(20)]))
    await terminate(database_url, first)
    with pytest.raises(AgentShellError) as caught:
        await running
    assert caught.value.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE

    second = (await statement.run([bigint(0)])).get_value(0, 0)
    assert second is not None
    await terminate(database_url, second)
    third = (await statement.run([bigint(0)])).get_value(0, 0)
    assert len({first, second, third}) == 3


async def terminate(url: str, pid: bytes) -> None:
    """Ends a connection, and returns once it is gone."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("SELECT pg_terminate_backend(%s, 10000)", (int.from_bytes(pid),))
