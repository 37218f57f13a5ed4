"""What is forgotten is gone from the very next read, by anybody, in any process. A receipt remains."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.message import Message as Request
from psycopg import sql
from tests.contract.memory.caller import GUIDE, TIMEOUT_SECONDS, USER, Caller, pages_of, said, struct
from tests.contract.memory.conftest import CONFIG, serving

from agentshell.db.database import Database
from agentshell.memory.cache import cache as caches
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.store import Store
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb

_BLOCKED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND state = 'active'"""


@pytest.fixture
async def caller(database: Database, store: Store) -> AsyncGenerator[Callable[[str], Caller]]:
    """Makes callers of a service with a cache, which must forget, too."""
    async with serving(MemoryService(CONFIG, database, store, cache=caches.of(CONFIG))) as caller:
        yield caller


@pytest.fixture
async def elsewhere(database_url: str, store: Store) -> AsyncGenerator[Callable[[str], Caller]]:
    """Makes callers of another process's service over the same memory, with its own cache."""
    database = await Database.open(database_url, 4)
    async with serving(MemoryService(CONFIG, database, store, cache=caches.of(CONFIG))) as caller:
        yield caller
    await database.close()


async def seen(caller: Caller, *namespaces: str) -> list[tuple[str, str]]:
    """Returns what every kind of read finds in the namespaces, as pairs of read and result."""
    found: list[tuple[str, str]] = []
    for namespace in namespaces:
        listed = await caller.ids(namespace)
        found += [("List", name) for name in listed]
        found += [("Search", name) for name in await caller.search("tea", namespace, limit=100)]
        exported = await caller.export(namespace=namespace)
        found += [("Export", each.item.record.record.record_id or each.item.message.session_id) for each in exported]
        counted = (await caller(pb.StatsRequest(namespace=namespace))).namespaces
        found += [("Stats", str(each.record_count + each.message_count)) for each in counted]
        if session := namespace.removeprefix("session/") if namespace.startswith("session/") else "":
            history = await caller(pb.ListMessagesRequest(session_id=session))
            window = await caller(pb.GetWindowRequest(session_id=session))
            found += [("messages", session) for _ in [*history.messages, *window.messages]]
    return found


async def test_what_is_forgotten_the_next_read_does_not_see(acme: Caller) -> None:
    await acme.write(a="tea", b="tea", c="tea", d="tea")
    await acme.ingest(("one.md", b"# One\n\ntea"), ("two.md", b"tea"))
    await acme.write(GUIDE, own="tea")
    assert await acme.forget(USER, records=pb.RecordIds(record_ids=["a", "b", "b", "none"])) == (2, 0)
    assert await acme.search("tea") == await acme.ids(USER) == ["c", "d"]
    for count in (1, 0):
        assert await acme.forget(GUIDE, source_uri="one.md") == (count, 0)
    assert len(await acme.search("tea", GUIDE)) == len(await acme.ids(GUIDE)) == 2
    assert await acme.forget(GUIDE, everything=True) == (2, 0)
    assert await seen(acme, GUIDE) == []
    assert await acme.ids(USER) == ["c", "d"]


async def test_what_has_the_metadata_is_forgotten_and_nothing_else(acme: Caller) -> None:
    for name, hot in (("green", True), ("ice", False)):
        for n in range(2):
            record = pb.Record(record_id=f"{name}{n}", text="tea", metadata=struct(hot=hot, n=n))
            await acme(pb.WriteRequest(namespace=USER, record=record))
    await acme.write(plain="tea")
    assert await acme.forget(USER, filter=struct(hot=True, n=1)) == (1, 0)
    assert await acme.forget(USER, filter=struct(hot=False)) == (2, 0)
    assert await acme.search("tea") == await acme.ids(USER) == ["green0", "plain"]
    refused = await acme.refused(pb.ForgetRequest(namespace=USER, filter=struct()))
    assert (refused.reason, refused.violations[0][0]) == (error_pb2.ERROR_REASON_INVALID_REQUEST, "filter")


async def test_to_forget_a_session_forgets_its_history_and_a_new_one_begins(acme: Caller) -> None:
    def append(session: str, request_id: str) -> pb.AppendMessagesRequest:
        return pb.AppendMessagesRequest(session_id=session, messages=[said("1"), said("2")], request_id=request_id)

    await acme(append("s", "1"))
    await acme(append("other", "2"))
    await acme.write("session/s", summary="tea")
    assert await acme.forget("session/s", everything=True) == (1, 2)
    assert await seen(acme, "session/s") == []
    assert (await acme(append("s", "3"))).message_count == 2
    assert len((await acme(pb.ListMessagesRequest(session_id="other"))).messages) == 2


async def _live(caller: Caller, user: str) -> None:
    """Leaves traces of a user wherever possible."""
    await caller.write(f"user/{user}", own="Likes tea.")
    for namespace in (GUIDE, "personality/guide"):
        record = pb.Record(record_id=f"of-{user}", text=f"{user} likes tea.", user_id=user)
        await caller(pb.WriteRequest(namespace=namespace, record=record))
    session = f"talk-{user}"
    append = pb.AppendMessagesRequest(
        session_id=session, user_id=user, messages=[said("tea?"), said("tea!")], request_id=f"append-{user}"
    )
    await caller(append)
    await caller.write(f"session/{session}", summary="It was about tea.")


def _places(user: str) -> list[str]:
    return [f"user/{user}", f"session/talk-{user}"]


async def test_to_forget_a_user_forgets_all_that_is_or_names_the_user_and_nothing_of_others(
    acme: Caller, globex: Caller, elsewhere: Callable[[str], Caller]
) -> None:
    for caller, user in itertools.product((acme, globex), ("ann", "bob")):
        await _live(caller, user)
    common = (GUIDE, "personality/guide")
    for caller in (acme, elsewhere("acme")):
        assert len(await seen(caller, *_places("ann"))) == 14
        assert len(await caller.search("ann likes tea", *common)) == 4
    others = [await seen(acme, *_places("bob")), await seen(globex, *_places("ann"), *_places("bob"), *common)]

    receipt = (await acme(pb.ForgetUserRequest(user_id="ann"))).receipt
    assert (receipt.user_id, receipt.what, receipt.record_count, receipt.message_count) == ("ann", "user", 4, 2)
    for caller in (acme, elsewhere("acme")):
        assert await seen(caller, *_places("ann")) == []
        assert await caller.export(user_id="ann") == []
        assert [await caller.ids(namespace) for namespace in common] == [["of-bob"], ["of-bob"]]
        assert await caller.search("ann likes tea", *common) == ["of-bob", "of-bob"]
    assert others == [
        await seen(acme, *_places("bob")),
        await seen(globex, *_places("ann"), *_places("bob"), *common),
    ]
    again = (await acme(pb.ForgetUserRequest(user_id="ann"))).receipt
    assert (again.record_count, again.message_count) == (0, 0)


async def test_receipts_say_what_who_and_when_newest_first_to_their_own_tenant(acme: Caller, globex: Caller) -> None:
    await acme.write(a="tea", b="tea", c="tea")
    await acme(pb.WriteRequest(namespace=USER, record=pb.Record(record_id="m", text="tea", metadata=struct(hot=True))))
    await acme.ingest(("a.md", b"tea"))
    await acme(pb.AppendMessagesRequest(session_id="s", messages=[said("tea")], request_id="1"))
    requests: list[Any] = [
        pb.ForgetRequest(namespace=USER, records=pb.RecordIds(record_ids=["a", "none"])),
        pb.ForgetRequest(namespace=GUIDE, source_uri="a.md"),
        pb.ForgetRequest(namespace=USER, filter=struct(hot=True)),
        pb.ForgetRequest(namespace="session/s", everything=True),
        pb.ForgetUserRequest(user_id="ann"),
    ]
    receipts = [(await acme(request)).receipt for request in requests]
    assert [(each.what, each.namespace, each.user_id, each.record_count, each.message_count) for each in receipts] == [
        ("records", USER, "", 1, 0),
        ("source_uri", GUIDE, "", 1, 0),
        ("filter", USER, "", 1, 0),
        ("everything", "session/s", "", 0, 1),
        ("user", "", "ann", 2, 0),
    ]
    assert {each.principal_id for each in receipts} == {"ann"}
    assert list((await acme(pb.ListReceiptsRequest(user_id="ann"))).receipts) == receipts[-1:]
    pages = await pages_of(acme, pb.ListReceiptsRequest(page_size=2))
    digest = f"sha256:{hashlib.sha256(b'acme ann').hexdigest()}"
    for each in receipts:  # Stored receipts name no user.
        each.namespace = each.namespace.replace(USER, f"user/{digest}")
        assert each.user_digest == (digest if each.user_id else "")
        each.ClearField("user_id")
    assert [each for page in pages for each in page.receipts] == sorted(
        receipts, key=lambda each: each.receipt_id, reverse=True
    )
    assert await globex(pb.ListReceiptsRequest()) == pb.ListReceiptsResponse()


async def test_no_text_that_is_forgotten_stays_in_the_database(acme: Caller, database: Database) -> None:
    record = pb.Record(text="xyzzy", metadata=struct(k="xyzzy"), source=pb.Source(title="xyzzy"))
    await acme(pb.WriteRequest(namespace=USER, record=record, request_id="1"))
    await acme(pb.WriteRequest(namespace=GUIDE, record=pb.Record(text="xyzzy", user_id="ann"), request_id="2"))
    await acme(pb.AppendMessagesRequest(session_id="s", messages=[said("xyzzy")], request_id="3"))
    await acme(pb.AppendMessagesRequest(session_id="t", messages=[said("xyzzy")], user_id="ann", request_id="4"))
    await acme.forget("session/s", everything=True, request_id="5")
    await acme(pb.ForgetUserRequest(user_id="ann", request_id="6"))
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'memory'")
        for (table,) in await cursor.fetchall():
            statement = sql.SQL("SELECT row::text FROM {} row").format(sql.Identifier("memory", table))
            rows = await (await connection.execute(statement)).fetchall()
            assert not any("xyzzy" in text or b"xyzzy".hex() in text for (text,) in rows), table


async def test_of_a_user_who_is_forgotten_not_even_the_name_is_kept(acme: Caller, database: Database) -> None:
    user, namespace = "xyzzy", "user/xyzzy"
    await acme(pb.WriteRequest(namespace=namespace, record=pb.Record(text="tea", user_id=user), request_id="1"))
    await acme(pb.AppendMessagesRequest(session_id="s", messages=[said("tea")], user_id=user, request_id="2"))
    forgets: list[Any] = [
        pb.ForgetRequest(namespace=namespace, everything=True, request_id="3"),
        pb.ForgetUserRequest(user_id=user, request_id="4"),
    ]
    for request in forgets:
        receipt = (await acme(request)).receipt
        assert (receipt.namespace or receipt.user_id) in (namespace, user)
        assert (await acme(request)).receipt == receipt, "a repeat is told as much"
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'memory'")
        tables = [table for (table,) in await cursor.fetchall()]
        for table in set(tables) - {"generations"}:  # Kept for a day, to invalidate caches.
            statement = sql.SQL("SELECT row::text FROM {} row").format(sql.Identifier("memory", table))
            rows = await (await connection.execute(statement)).fetchall()
            assert not any(user in text or user.encode().hex() in text for (text,) in rows), table
    assert not (await acme(pb.SearchRequest(namespaces=[namespace], query="tea"))).hits
    await acme(pb.WriteRequest(namespace=namespace, record=pb.Record(record_id="new", text="tea")))
    assert [hit.record.record_id for hit in (await acme(pb.SearchRequest(namespaces=[namespace], query="tea"))).hits]


@asynccontextmanager
async def _write_held_up(acme: Caller, database: Database) -> AsyncGenerator[asyncio.Task[Any]]:
    """Holds a BatchWrite that has written `a` and waits to write `b` until the block ends."""
    holder = await database.dedicated()
    async with holder.transaction(force_rollback=True):
        await holder.execute(
            "INSERT INTO memory.records (tenant_id, namespace, record_id, kind, text) VALUES ('acme', %s, 'b', 1, '')",
            [USER],
        )
        write = asyncio.create_task(acme.write(a="tea", b="tea"))
        await _until_blocked(database, 1)
        yield write
    await holder.close()


async def _until_blocked(database: Database, count: int) -> None:
    """Waits until `count` statements wait for a lock."""
    async with asyncio.timeout(TIMEOUT_SECONDS), database.connection() as connection:
        while (await (await connection.execute(_BLOCKED)).fetchone() or (0,))[0] < count:  # noqa: ASYNC110 - Postgres sends no event
            await asyncio.sleep(0.01)


async def test_a_write_under_way_is_wholly_forgotten_or_wholly_after(acme: Caller, database: Database) -> None:
    forgets: list[Request] = [
        pb.ForgetRequest(namespace=USER, everything=True),
        pb.ForgetRequest(namespace=USER, records=pb.RecordIds(record_ids=["a", "b"])),
        pb.ForgetUserRequest(user_id="ann"),
    ]
    for request in forgets:
        await acme.write(a="old tea")
        async with _write_held_up(acme, database) as write:
            forget = asyncio.create_task(acme(request))
            await _until_blocked(database, 2)
        await write
        assert (await forget).receipt.record_count == 2
        assert await seen(acme, USER) == []


async def test_among_many_writers_nothing_answered_before_a_forget_is_read_after_it(
    acme: Caller, elsewhere: Callable[[str], Caller]
) -> None:
    """Each batch rewrites `last` and adds a record: whenever `last` is read, the record it names exists."""
    other = elsewhere("acme")
    numbers = itertools.count()
    answered: set[str] = set()
    is_over = asyncio.Event()

    async def write(caller: Caller) -> None:
        while not is_over.is_set():
            name = f"n{next(numbers)}"
            await caller.write(last=f"tea {name}", **{name: "tea"})
            answered.add(name)

    async def check(caller: Caller, forgotten: set[str]) -> None:
        records = (await caller(pb.ListRequest(namespace=USER, page_size=500))).records
        texts = {record.record_id: record.text for record in records}
        assert not texts or texts["last"].removeprefix("tea ") in texts
        found = {*texts, *await caller.search("tea", limit=100)}
        found |= {each.item.record.record.record_id for each in await caller.export(namespace=USER)}
        assert not found & forgotten

    async with asyncio.TaskGroup() as tasks:
        for caller in (acme, other, acme, other):
            tasks.create_task(write(caller))
        try:
            for requester, reader in [(acme, other), (other, acme)] * 4:
                forgotten = set(answered)
                await requester.forget(USER, everything=True)
                await asyncio.gather(check(reader, forgotten), check(requester, forgotten))
        finally:
            is_over.set()
    assert answered
