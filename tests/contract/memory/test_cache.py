"""Reads through a cache differ from reads without one only in speed: with each cache, in all processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message as Request
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY
from tests.contract.memory import redis_server
from tests.contract.memory.caller import GUIDE, USER, Caller, said, texts
from tests.contract.memory.redis_server import RedisServer
from tests.contract.serving import member

from agentshell.db.database import Database
from agentshell.memory.cache import cache as caches
from agentshell.memory.cache import redis as redis_cache
from agentshell.memory.cache.cache import Cache
from agentshell.memory.cache.process import ProcessCache
from agentshell.memory.cache.redis import RedisCache
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.store import Query
from agentshell.mesh.call import Principal
from agentshell.mesh.config import MemoryConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub, add_MemoryServiceServicer_to_server

WAIT_SECONDS = 20
SEARCH = pb.SearchRequest(namespaces=[USER], query="tea")
MESSAGES, WINDOW = pb.ListMessagesRequest(session_id="s"), pb.GetWindowRequest(session_id="s")


def outcomes(cache: str) -> tuple[float, float, float]:
    """Returns how many reads so far were hits, misses and stale."""
    name = "agentshell_memory_cache_reads_total"
    count = [REGISTRY.get_sample_value(name, {"cache": cache, "outcome": one}) for one in ("hit", "miss", "stale")]
    return count[0] or 0, count[1] or 0, count[2] or 0


@dataclass
class Shared:
    """A cache that all services of a test share, as they would Redis, and that may come back with old entries."""

    entries: dict[str, bytes]
    name = "shared"

    async def get(self, key: str) -> bytes | None:
        return self.entries.get(key)

    async def put(self, key: str, value: bytes) -> None:
        self.entries[key] = value

    async def close(self) -> None:
        self.entries.clear()


@dataclass
class Mesh:
    """Two Memory services over one database, as in two processes."""

    acme: Caller
    other: Caller
    globex: Caller
    cache: str


async def _serve(stack: AsyncExitStack, database: Database, cache: Cache) -> Callable[[str], Caller]:
    served = await stack.enter_async_context(member())
    memory = MemoryService(MemoryConfig(), database, await PgvectorStore.open(database), cache=cache)
    stack.push_async_callback(cache.close)
    served.server.add("kfm.memory.v1.MemoryService", partial(add_MemoryServiceServicer_to_server, memory))
    channel = await stack.enter_async_context(await served.start())
    return lambda tenant: Caller(MemoryServiceStub(channel), served.keyring.mint(Principal(tenant, "ann")))


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncGenerator[RedisServer]:
    """A Redis that a test can kill."""
    server = RedisServer(redis_server.program(), tmp_path)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture(params=["process", "shared", "redis"])
async def mesh(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> AsyncGenerator[Mesh]:
    """A mesh with each cache. Redis is not cleared: entries of other tests have other generations or tenants."""
    async with AsyncExitStack() as stack:
        shared = Shared({})
        url = ""
        if request.param == "redis" and not (url := redis_server.url() or ""):
            server = RedisServer(redis_server.program(), tmp_path)
            stack.push_async_callback(server.kill)
            await server.start()
            url = server.url
        make: dict[str, Callable[[], Cache]] = {
            "process": lambda: ProcessCache(60, 1 << 20),
            "shared": lambda: shared,
            "redis": lambda: RedisCache(url, 60),
        }
        one, other = [await _serve(stack, database, make[request.param]()) for _ in range(2)]
        yield Mesh(one("acme"), other("acme"), one("globex"), request.param)


async def answers(caller: Caller) -> tuple[list[str], list[str], list[str]]:
    """Returns the answers to a search, a list of messages and a window."""
    found = [hit.record.text for hit in (await caller(SEARCH)).hits]
    return sorted(found), texts((await caller(MESSAGES)).messages), texts((await caller(WINDOW)).messages)


async def test_a_read_after_a_change_sees_it_wherever_it_was_made(mesh: Mesh) -> None:
    both = (mesh.acme, mesh.other)
    for caller in both:
        assert await answers(caller) == ([], [], [])

    def append(text: str, request_id: str) -> pb.AppendMessagesRequest:
        return pb.AppendMessagesRequest(session_id="s", messages=[said(text)], request_id=request_id)

    def write(text: str) -> pb.WriteRequest:
        return pb.WriteRequest(namespace=USER, record=pb.Record(record_id="a", text=text))

    by_id = pb.ForgetRequest(namespace=USER, records=pb.RecordIds(record_ids=["a"]))
    everything = pb.ForgetRequest(namespace="session/s", everything=True)
    steps: list[tuple[Request, tuple[list[str], list[str], list[str]]]] = [
        (write("tea a"), (["tea a"], [], [])),
        (append("hi", "1"), (["tea a"], ["hi"], ["hi"])),
        (write("tea b"), (["tea b"], ["hi"], ["hi"])),
        (by_id, ([], ["hi"], ["hi"])),
        (everything, ([], [], [])),
        (append("again", "2"), ([], ["again"], ["again"])),
        (
            write("tea c"),
            (["tea c"], ["again"], ["again"]),
        ),
        (pb.ForgetUserRequest(user_id="ann"), ([], ["again"], ["again"])),
    ]
    for at, (change, expected) in enumerate(steps):
        await both[at % 2](change)
        for caller in (*both, *both):
            assert await answers(caller) == expected
    assert await answers(mesh.globex) == ([], [], [])


async def test_what_has_not_changed_is_answered_again_without_asking_the_store(mesh: Mesh) -> None:
    await mesh.acme.write(a="tea a", b="tea b")
    await mesh.acme(pb.AppendMessagesRequest(session_id="s", messages=[said("hi")], request_id="1"))
    first = await answers(mesh.acme)
    hits, misses, stale = outcomes(mesh.cache)
    assert await answers(mesh.acme) == first
    assert outcomes(mesh.cache) == (hits + 2, misses, stale)
    await mesh.acme.write("user/other", c="tea")  # Changes elsewhere do not matter.
    assert await answers(mesh.acme) == first
    assert outcomes(mesh.cache) == (hits + 4, misses, stale)


async def test_documents_and_what_all_tenants_share_are_read_anew_once_they_change(mesh: Mesh) -> None:
    async def found(caller: Caller) -> list[str]:
        hits = (await caller(pb.SearchRequest(namespaces=[GUIDE], query="tea"))).hits
        return sorted(hit.record.text for hit in hits)

    for content, replace_all in ((b"tea one", False), (b"tea two", False), (b"", True)):
        documents = [("a.md", content)] if content else []
        await mesh.acme.ingest(*documents, replace_all=replace_all)
        for caller in (mesh.acme, mesh.other, mesh.acme):
            assert await found(caller) == ([content.decode()] if content else [])


async def test_an_answer_ends_with_the_first_of_its_records(mesh: Mesh) -> None:
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=0.5))
    await mesh.acme.write(lasting="tea")
    await mesh.acme(pb.WriteRequest(namespace=USER, record=pb.Record(record_id="r", text="tea", expire_time=soon)))
    async with asyncio.timeout(WAIT_SECONDS):  # Less time than a cache keeps it.
        while len((await mesh.acme(SEARCH)).hits) > 1:
            pass
    assert await mesh.acme.search("tea") == ["lasting"]


async def test_a_cache_that_comes_back_with_old_entries_or_with_rubbish_is_not_believed(database: Database) -> None:
    shared = Shared({})
    async with AsyncExitStack() as stack:
        acme = (await _serve(stack, database, shared))("acme")
        await acme.write(a="tea secret")
        assert await answers(acme) == (["tea secret"], [], [])
        before = dict(shared.entries)
        await acme(pb.ForgetRequest(namespace=USER, everything=True))
        shared.entries = before
        assert await answers(acme) == ([], [], [])
        for rubbish in (b"", b"x", b"\xff" * 100, next(iter(before.values()))[:60]):
            shared.entries = dict.fromkeys(before, rubbish)
            assert await answers(acme) == ([], [], [])


async def test_a_read_under_way_while_something_is_forgotten_leaves_nothing_that_is_read_again(
    database: Database,
) -> None:
    shared, reached, go = Shared({}), asyncio.Event(), asyncio.Event()

    class Held(PgvectorStore):
        async def search(self, query: Query) -> Any:
            found = await super().search(query)
            reached.set()
            await go.wait()
            return found

    async with AsyncExitStack() as stack:
        acme = (await _serve(stack, database, shared))("acme")
        await acme.write(a="tea")
        served = await stack.enter_async_context(member())
        memory = MemoryService(MemoryConfig(), database, await Held.open(database), cache=shared)
        served.server.add("kfm.memory.v1.MemoryService", partial(add_MemoryServiceServicer_to_server, memory))
        channel = await stack.enter_async_context(await served.start())
        slow = Caller(MemoryServiceStub(channel), served.keyring.mint(Principal("acme", "ann")))
        reading = asyncio.create_task(slow(SEARCH))
        await asyncio.wait_for(reached.wait(), WAIT_SECONDS)
        await acme(pb.ForgetRequest(namespace=USER, everything=True))
        go.set()
        assert len((await reading).hits) == 1  # It began before the Forget; its entry is stored after it.
        assert shared.entries
        assert (await acme(SEARCH)).hits == []


async def test_the_service_goes_on_when_redis_is_killed_and_when_it_is_back(
    database: Database, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_cache, "_PAUSE_SECONDS", 0.0)
    async with AsyncExitStack() as stack:
        one, other = [(await _serve(stack, database, RedisCache(redis.url, 60)))("acme") for _ in range(2)]
        await one.write(a="tea secret")
        assert await answers(other) == await answers(one) == (["tea secret"], [], [])
        await redis.kill()
        assert await answers(other) == (["tea secret"], [], [])
        await one(pb.ForgetRequest(namespace=USER, everything=True))
        assert await answers(other) == ([], [], [])
        await redis.start()  # With what it held when killed.
        for caller in (one, other, one):
            assert await answers(caller) == ([], [], [])
        hits = outcomes("redis")[0]
        assert await answers(other) == ([], [], [])
        assert outcomes("redis")[0] > hits


async def test_a_redis_that_does_not_answer_or_answers_rubbish_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_cache, "_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(redis_cache, "_PAUSE_SECONDS", 0.0)
    speaking: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            for said_now in speaking:
                writer.write(said_now)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    cache = RedisCache(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", 60)
    await cache.put("key", b"value")
    assert await cache.get("key") is None
    speaking.append(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert await cache.get("key") is None
    server.close()
    assert await cache.get("key") is None
    await cache.close()


async def test_a_process_keeps_what_was_used_last_in_as_much_room_as_it_may() -> None:
    cache = ProcessCache(60, 100)
    await cache.put("large", b"x" * 101)
    assert await cache.get("large") is None
    for name in "abcd":
        await cache.put(name, name.encode() * 30)
    kept = [name for name in "abcd" if await cache.get(name) is not None]
    assert kept == ["b", "c", "d"]
    await cache.close()
    assert await cache.get("d") is None


def test_a_cache_is_as_configured() -> None:
    assert caches.of(MemoryConfig(cache="off")) is None
    assert isinstance(caches.of(MemoryConfig()), ProcessCache)
    assert isinstance(caches.of(MemoryConfig(cache="redis")), RedisCache)
    with pytest.raises(AgentShellError) as error:
        caches.of(MemoryConfig(cache="redis", redis_url="http://ann:secret@nowhere"))
    assert error.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert "secret" not in str(error.value)
