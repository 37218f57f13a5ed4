"""What the Postgres driver promises beyond the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from agentshell.db.database import Database
from agentshell.log.log import Record, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import ids

WAIT = 10.0


@pytest.fixture
async def log(database: Database) -> AsyncGenerator[PostgresLog]:
    log = await PostgresLog.open(database)
    await log.ensure_topic(Topic("topic", 2, retention=timedelta(hours=1)))
    yield log
    await log.close()


def records(count: int) -> list[Record]:
    return [Record(f"key{index}", ids.record_id(f"{index}"), b"payload", {"n": f"{index}"}) for index in range(count)]


async def test_appends_that_wait_together_share_a_commit(log: PostgresLog) -> None:
    acks = await asyncio.gather(*(log.append("topic", [record]) for record in records(500)))
    commits = {stored.append_time for partition in range(2) for stored in await log.read("topic", partition, 0, 500, 0)}
    assert len(acks) == 500
    assert len(commits) < 20


async def test_an_append_that_is_given_up_holds_up_nobody(log: PostgresLog) -> None:
    appending = [asyncio.create_task(log.append("topic", [record])) for record in records(50)]
    await asyncio.sleep(0)
    for task in appending[::2]:
        task.cancel()
    async with asyncio.timeout(WAIT):
        kept = await asyncio.gather(*appending[1::2])
        assert all(len(acks) == 1 for acks in kept)
        again = await log.append("topic", records(50))
    assert sum(not ack.duplicate for ack in again) <= 25
    assert sum(await log.end_offsets("topic")) == 50


async def test_offsets_have_no_gaps_and_retention_deletes_from_the_start(log: PostgresLog) -> None:
    await log.append("topic", records(3000))
    ends = await log.end_offsets("topic")
    assert sum(ends) == 3000
    assert await log.apply_retention(datetime.now(UTC)) == 0
    assert await log.apply_retention(datetime.now(UTC) + timedelta(hours=2)) == 3000
    assert await log.end_offsets("topic") == ends


async def test_no_statement_reads_the_table_of_records_from_end_to_end(database_url: str) -> None:
    async with opened(database_url) as log:
        await log.ensure_topic(Topic("topic", 2, retention=timedelta(hours=1)))
    made = await whole_scans(database_url)  # From building the indexes.

    async with opened(database_url) as log, opened(database_url) as reader:
        # Statements are planned while the table is empty, when a full scan would seem best.
        for _ in range(10):
            assert await log.read("topic", 0, 0, 10, 0) == []
            await log.apply_retention(datetime.now(UTC))
        for record in records(20):
            await log.append("topic", [record])
            await reader.read("topic", 0, 0, 10, 0)
        await log.append("topic", records(2000))
        await log.apply_retention(datetime.now(UTC))
        (end, _) = await reader.end_offsets("topic")
        assert len(await reader.read("topic", 0, end - 900, 5000, 0)) == 900
    assert await whole_scans(database_url) == made


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[PostgresLog]:
    database = await Database.open(url, 4)
    log = await PostgresLog.open(database)
    yield log
    await log.close()
    await database.close()


async def whole_scans(url: str) -> int:
    """Returns how often the records were fully scanned, once all sessions have ended and reported theirs."""
    async with asyncio.timeout(WAIT), await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while (await connection.execute(others)).rowcount:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)
        cursor = await connection.execute(
            "SELECT seq_scan FROM pg_stat_user_tables WHERE schemaname = 'log' AND relname = 'records'"
        )
        (count,) = await cursor.fetchone() or (-1,)
        return count


async def test_a_record_that_nobody_told_of_is_found_by_looking(database_url: str, log: PostgresLog) -> None:
    (partition,) = {ack.partition for ack in await log.append("topic", records(1))}
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as stranger:
        reading = asyncio.create_task(log.read("topic", partition, 1, 10, WAIT))
        await asyncio.sleep(0)
        await stranger.execute(
            "SELECT * FROM log.append(false, ARRAY(SELECT partition_id FROM log.partitions WHERE partition = %s),"
            " ARRAY['key'], ARRAY['\\x00'::bytea], ARRAY[NULL::jsonb], ARRAY['\\x01'::bytea])",
            (partition,),
        )
        (stored,) = await reading
        assert (stored.offset, stored.record.payload) == (1, b"\x01")
