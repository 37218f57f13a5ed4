"""Expired records are gone for readers, whether or not they are deleted yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY
from tests.contract.memory.caller import GUIDE, TIMEOUT_SECONDS, USER, Caller, said
from tests.contract.memory.conftest import serving

from agentshell.db.database import Database
from agentshell.memory import sweeper
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.store import Store
from agentshell.memory.sweeper import Sweeper
from agentshell.mesh.config import MemoryConfig, NamespaceConfig
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb

PAST = Timestamp(seconds=1)
RULES = MemoryConfig(
    chunk_characters=300,
    namespaces=(
        NamespaceConfig(namespace="user/kept"),
        NamespaceConfig(namespace="user/", ttl_seconds=3600),
        NamespaceConfig(namespace="knowledge/guide", ttl_seconds=60),
    ),
)


@pytest.fixture
async def ruled(database: Database, store: Store) -> AsyncGenerator[Caller]:
    """A caller of a service with expiry rules for namespaces."""
    async with serving(MemoryService(RULES, database, store)) as caller:
        yield caller("acme")


async def expired(caller: Caller, namespace: str, *names: str) -> None:
    """Writes records that have already expired."""
    records = [pb.Record(record_id=name, text="tea", expire_time=PAST, user_id="ann") for name in names]
    await caller(pb.BatchWriteRequest(namespace=namespace, records=records))


async def rows(database: Database) -> int:
    async with database.connection() as connection:
        (count,) = await (await connection.execute("SELECT count(*) FROM memory.records")).fetchone() or (0,)
    return int(count)


async def test_no_read_finds_what_has_expired(acme: Caller, shared: Caller) -> None:
    await expired(acme, USER, "r")
    await expired(shared, GUIDE, "r")
    await acme.write(USER, other="milk")
    for namespace in (USER, GUIDE):
        missing = await acme.refused(pb.GetRequest(namespace=namespace, record_id="r"))
        assert missing.reason == error_pb2.ERROR_REASON_RECORD_NOT_FOUND
        several = await acme(pb.BatchGetRequest(namespace=namespace, record_ids=["r"]))
        assert several == pb.BatchGetResponse(missing_record_ids=["r"])
        for order in ("record_id", "create_time desc", "update_time"):
            listed = await acme(pb.ListRequest(namespace=namespace, order_by=order))
            assert "r" not in [record.record_id for record in listed.records]
        for mode in (pb.SEARCH_MODE_HYBRID, pb.SEARCH_MODE_TEXT, pb.SEARCH_MODE_VECTOR):
            assert "r" not in await acme.search("tea", namespace, mode=mode)
    everything = await acme.export(everything=True)
    assert [each.item.record.record.record_id for each in everything] == ["other"]
    assert await acme.export(user_id="bob") == []
    [stats] = (await acme(pb.StatsRequest())).namespaces
    assert (stats.namespace, stats.record_count, stats.text_bytes) == (USER, 1, 4)
    assert await acme.forget(USER, records=pb.RecordIds(record_ids=["r"])) == (0, 0)


async def test_no_expired_chunk_is_a_neighbour_and_no_expired_summary_is_in_a_window(
    acme: Caller, database: Database
) -> None:
    await acme.ingest(("a.md", b"# A\n\none\n\n# B\n\ntwo\n\n# C\n\nthree"))
    await acme(pb.AppendMessagesRequest(session_id="s", messages=[said(f"{n}") for n in range(4)], request_id="1"))
    await expired(acme, "session/s", "rolling-summary")
    async with database.connection() as connection:
        await connection.execute("UPDATE memory.records SET expire_time = now() WHERE source_chunk_index = 0")
    request = pb.SearchRequest(namespaces=[GUIDE], query="two", limit=1, neighbour_count=1)
    [hit] = (await acme(request)).hits
    assert [record.text for record in hit.neighbours] == ["three"]
    assert not (await acme(pb.GetWindowRequest(session_id="s", max_turns=1))).HasField("summary")


async def test_a_write_in_the_place_of_an_expired_record_is_its_first(acme: Caller) -> None:
    await expired(acme, USER, "r")
    record = pb.Record(record_id="r", text="tea")
    written = (await acme(pb.WriteRequest(namespace=USER, record=record, expected_version=0))).record
    assert (written.version, await acme.search("tea")) == (1, ["r"])


async def test_a_record_that_names_no_end_has_that_of_the_first_rule_for_its_namespace(ruled: Caller) -> None:
    async def written(namespace: str, expire_time: Timestamp | None = None) -> pb.Record:
        record = pb.Record(text="tea", expire_time=expire_time)
        return (await ruled(pb.WriteRequest(namespace=namespace, record=record))).record

    def lifetime(record: pb.Record) -> timedelta:
        return record.expire_time.ToDatetime() - record.update_time.ToDatetime()

    bounds = timedelta(seconds=TIMEOUT_SECONDS)
    assert abs(lifetime(await written(USER)) - timedelta(hours=1)) < bounds
    assert abs(lifetime(await written(GUIDE)) - timedelta(minutes=1)) < bounds
    own = Timestamp(seconds=4_000_000_000)
    assert (await written(USER, own)).expire_time == own
    assert not any([(await written(name)).HasField("expire_time") for name in ("user/kept", "session/s")])
    await ruled.ingest(("a.md", b"# A\n\ntea"))
    listed = (await ruled(pb.ListRequest(namespace=GUIDE))).records
    assert [record.HasField("expire_time") for record in listed] == [True, True]


async def test_a_repeated_request_is_answered_with_the_end_that_the_first_one_got(ruled: Caller) -> None:
    write = pb.WriteRequest(namespace=USER, record=pb.Record(text="tea"), request_id="1")
    first = await ruled(write)
    assert first.record.HasField("expire_time")
    assert await ruled(write) == first


async def test_what_has_expired_is_taken_away_in_batches_and_counted(
    acme: Caller, globex: Caller, database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "BATCH_RECORDS", 2)
    await expired(acme, USER, "a", "b", "c")
    await expired(globex, "session/s", "a", "b")
    await acme.write(kept="tea")
    swept = REGISTRY.get_sample_value("agentshell_memory_swept_records_total") or 0
    sweepers = [Sweeper(database, store, 60) for _ in range(3)]
    assert sum(await asyncio.gather(*(each.sweep() for each in sweepers))) == 5
    assert (REGISTRY.get_sample_value("agentshell_memory_swept_records_total") or 0) - swept == 5
    assert (await rows(database), await acme.ids(USER)) == (1, ["kept"])


async def test_the_sweeper_waits_for_no_record_that_somebody_holds(
    acme: Caller, database: Database, store: Store
) -> None:
    await expired(acme, USER, "held", "free")
    async with database.transaction() as holder:
        await holder.execute("SELECT FROM memory.records WHERE record_id = 'held' FOR UPDATE")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await Sweeper(database, store, 60).sweep() == 1


async def test_the_sweeper_sweeps_by_itself_until_it_is_stopped(acme: Caller, database: Database, store: Store) -> None:
    await expired(acme, USER, "a")
    running = asyncio.create_task(Sweeper(database, store, 0.01).run())
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await rows(database):  # noqa: ASYNC110 - the database sends no notification
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await expired(acme, USER, "b")
    assert await rows(database) == 1
