"""What a log is: every driver passes this. A second driver is one more `Store` in `STORES`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg
import pytest

from agentshell.db.database import Database
from agentshell.db.server import PostgresServer
from agentshell.log.log import (
    MAX_APPEND_BYTES,
    MAX_APPEND_RECORDS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    Ack,
    Lease,
    Log,
    Record,
    StoredRecord,
    Topic,
    partition_of,
)
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import ids
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason

T = TypeVar("T")

WAIT = 10.0  # Seconds: the most that a test waits for what is to come at once.
WORKER = Path(__file__).with_name("log_worker.py")
PARTITIONS = 4


class Store(Protocol):
    """A driver with a store of this test's own. `dedups`: it drops a repeated id itself. `atomic`: over topics, too."""

    driver: str
    url: str
    dedups: bool
    atomic: bool

    async def open(self, *, lease_seconds: float = 5.0) -> Log: ...
    async def expire(self, log: Log) -> None: ...
    async def cut(self) -> None: ...
    async def make_incompatible(self) -> None: ...
    async def kill_broker(self) -> None: ...
    async def start_broker(self) -> None: ...
    async def close(self) -> None: ...


class PostgresStore:
    """A database, and the whole server where `data_dir` says that it is ours to kill."""

    driver = "postgres"
    dedups = True
    atomic = True

    def __init__(self, url: str, data_dir: Path) -> None:
        self.url = url
        self._data_dir = data_dir
        self._server: PostgresServer | None = None
        self._opened: list[tuple[Database, PostgresLog]] = []

    async def open(self, *, lease_seconds: float = 5.0) -> Log:
        """A log as a process of its own has it."""
        database = await Database.open(self.url, 8)
        log = await PostgresLog.open(database, lease_seconds=lease_seconds)
        self._opened.append((database, log))
        return log

    async def expire(self, log: Log) -> None:
        """Lets a day pass for the retention."""
        assert isinstance(log, PostgresLog)
        await log.apply_retention(datetime.now(UTC) + timedelta(days=1))

    async def cut(self) -> None:
        """Cuts all connections, once."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    async def make_incompatible(self) -> None:
        """Makes the store one of a later release."""
        await self.open()
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute("INSERT INTO log.migration (number, name, digest) VALUES (9999, 'later', '')")

    async def kill_broker(self) -> None:
        """Kills the server, which is started and owned from the first `start_broker` on."""
        pid = int((self._data_dir / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        assert self._server is not None
        await self._server.stop()

    async def start_broker(self) -> None:
        """Starts a server of this store's own."""
        self._server = await PostgresServer.start(self._data_dir)
        self.url = self._server.url

    async def close(self) -> None:
        """Closes all."""
        for database, log in self._opened:
            await log.close()
            await database.close()
        if self._server is not None:
            await self._server.stop()


STORES: dict[str, Callable[[str, Path], Store]] = {"postgres": PostgresStore}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> AsyncGenerator[Store]:
    store = STORES[request.param](database_url, tmp_path)
    yield store
    await store.close()


@pytest.fixture
async def log(store: Store) -> Log:
    log = await store.open()
    await log.ensure_topic(Topic("topic", PARTITIONS))
    return log


def record(name: str, key: str = "key") -> Record:
    return Record(key, ids.record_id(name), name.encode())


def names(records: Sequence[StoredRecord]) -> list[str]:
    return [stored.record.payload.decode() for stored in records]


async def read_all(log: Log, topic: str = "topic") -> list[StoredRecord]:
    records: list[StoredRecord] = []
    for partition, end in enumerate(await log.end_offsets(topic)):
        offset = 0
        while offset < end:
            batch = await log.read(topic, partition, offset, 100, 0)
            records += batch
            offset = batch[-1].offset + 1
    return records


async def poll_all(log: Log, lease: Lease, count: int) -> list[StoredRecord]:
    """Polls until there are `count` records."""
    records: list[StoredRecord] = []
    async with asyncio.timeout(WAIT):
        while len(records) < count:
            records += await log.poll(lease, 100, WAIT)
    return records


async def until_fenced(log: Log, lease: Lease) -> list[StoredRecord]:
    """Polls until the lease is over; returns what it was given until then."""
    records: list[StoredRecord] = []
    async with asyncio.timeout(WAIT):
        try:
            while True:
                records += await log.poll(lease, 100, WAIT)
        except AgentShellError as error:
            if error.reason != error_pb2.ERROR_REASON_FENCED:
                raise
            return records


async def reason_of(call: Coroutine[Any, Any, object]) -> ErrorReason.ValueType:
    """Returns why a call fails, within a bound."""
    async with asyncio.timeout(2 * WAIT):
        with pytest.raises(AgentShellError) as raised:
            await call
    return raised.value.reason


@contextlib.asynccontextmanager
async def worker(store: Store, command: str, topic: str = "topic") -> AsyncGenerator[asyncio.subprocess.Process]:
    """Another process; it is killed at the end at the latest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WORKER), store.driver, store.url, command, topic, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def lines(process: asyncio.subprocess.Process, last: str = "", count: int = -1) -> list[str]:
    """Reads what a worker says: so many lines, or until it says `last`."""
    assert process.stdout is not None
    said: list[str] = []
    async with asyncio.timeout(3 * WAIT):
        while len(said) != count and (line := (await process.stdout.readline()).decode().strip()) != last:
            said.append(line)
    return said


# Appending and reading


async def test_records_of_a_key_keep_their_order_under_concurrent_producers(store: Store, log: Log) -> None:
    other = await store.open()

    async def produce(log: Log, key: str) -> None:
        for number in range(25):
            await log.append("topic", [record(f"{key}/{number}/{part}", key) for part in range(2)])

    keys = [f"key{index}" for index in range(16)]
    await asyncio.gather(*(produce((log, other)[index % 2], key) for index, key in enumerate(keys)))

    stored = await read_all(log)
    for key in keys:
        of_key = [name for name in names(stored) if name.startswith(f"{key}/")]
        assert of_key == [f"{key}/{number}/{part}" for number in range(25) for part in range(2)]
    assert {(s.record.key, s.partition) for s in stored} == {(key, partition_of(key, PARTITIONS)) for key in keys}


async def test_offsets_of_a_partition_increase_and_acks_say_where_records_are(log: Log) -> None:
    records = [record(f"{index}", key=f"key{index % 7}") for index in range(40)]
    acks = await log.append("topic", records[:20]) + await log.append("topic", records[20:])

    stored = {(s.partition, s.offset): s.record for s in await read_all(log)}
    assert [stored[ack.partition, ack.offset] for ack in acks] == records
    for partition in range(PARTITIONS):
        offsets = [ack.offset for ack in acks if ack.partition == partition]
        assert offsets == sorted(set(offsets))


async def test_a_log_replays_from_the_start_and_from_the_middle(store: Store, log: Log) -> None:
    acks = [(await log.append("topic", [record(f"{index}")]))[0] for index in range(10)]
    partition = acks[0].partition

    for reader in (log, await store.open()):  # From memory, and from the store.
        assert names(await reader.read("topic", partition, 0, 100, 0)) == [f"{index}" for index in range(10)]
        assert names(await reader.read("topic", partition, acks[4].offset, 3, 0)) == ["4", "5", "6"]
        assert await reader.read("topic", partition, acks[-1].offset + 1, 100, 0) == []


async def test_bytes_headers_and_ids_come_back_as_they_were(store: Store, log: Log) -> None:
    records = [
        Record("key", b"\xff" * 16, bytes(range(256)), {"type": "kfm.turn.v1.TurnEvent", "naïve \U0001f600": '"\\\n'}),
        Record("key", b"\x00" * 16, b"\x00"),
        Record("k" * MAX_KEY_BYTES, b"\x01" * 16, b"p" * MAX_PAYLOAD_BYTES),
        Record("ключ", b"\x02" * 16, b"h", {f"{index:0255}": "v" * MAX_HEADER_BYTES for index in range(MAX_HEADERS)}),
    ]
    before = datetime.now(UTC) - timedelta(minutes=1)
    acks = await log.append("topic", records)

    for reader in (log, await store.open()):
        for ack, expected in zip(acks, records, strict=True):
            (stored,) = await reader.read("topic", ack.partition, ack.offset, 1, 0)
            assert stored == StoredRecord(ack.partition, ack.offset, stored.append_time, expected)
            assert before < stored.append_time < datetime.now(UTC) + timedelta(minutes=1)


async def test_a_waiting_read_wakes_for_a_record_of_this_or_another_process(store: Store, log: Log) -> None:
    other = await store.open()
    partition = partition_of("key", PARTITIONS)
    for writer in (log, other):
        (end,) = {(await log.end_offsets("topic"))[partition]}
        reading = [asyncio.create_task(reader.read("topic", partition, end, 10, WAIT)) for reader in (log, other)]
        (ack,) = await writer.append("topic", [record(f"{end}")])
        for records in await asyncio.gather(*reading):
            assert [(s.offset, s.record) for s in records] == [(ack.offset, record(f"{end}"))]


async def test_appends_to_several_topics_are_acknowledged_in_the_order_given(log: Log) -> None:
    await log.ensure_topic(Topic("outputs", 1, durability="relaxed"))
    acks = await log.append_all([("outputs", [record("a"), record("b")]), ("topic", []), ("topic", [record("c")])])

    assert acks == [[Ack(0, 0), Ack(0, 1)], [], [Ack(partition_of("key", PARTITIONS), 0)]]
    assert names(await read_all(log, "outputs")) == ["a", "b"]
    assert names(await read_all(log)) == ["c"]


async def test_an_append_of_which_a_part_is_refused_writes_nothing(log: Log) -> None:
    assert await reason_of(log.append("topic", [record("a"), Record("key", b"b" * 16, b"")])) == (
        error_pb2.ERROR_REASON_INVALID_REQUEST
    )
    assert await reason_of(log.append_all([("topic", [record("a")]), ("no-such", [record("b")])])) == (
        error_pb2.ERROR_REASON_TOPIC_NOT_FOUND
    )
    assert await log.end_offsets("topic") == [0] * PARTITIONS


async def test_a_repeated_id_has_one_effect(store: Store, log: Log) -> None:
    first = await log.append("topic", [record("a"), record("b"), record("a")])
    again = await (await store.open()).append("topic", [record("c"), record("a"), record("b")])

    if store.dedups:
        assert [ack.duplicate for ack in first] == [False, False, True]
        assert [ack.duplicate for ack in again] == [False, True, True]
        assert first[2].offset == again[1].offset == first[0].offset
        assert names(await read_all(log)) == ["a", "b", "c"]
    assert list(dict.fromkeys(names(await read_all(log)))) == ["a", "b", "c"]


async def test_concurrent_repeats_of_one_id_from_two_processes_have_one_effect(store: Store, log: Log) -> None:
    logs = (log, await store.open())
    acks = await asyncio.gather(*(logs[turn % 2].append("topic", [record(f"{turn // 4}")]) for turn in range(80)))

    if store.dedups:
        assert sum(not ack.duplicate for (ack,) in acks) == 20
        assert len(await read_all(log)) == 20
    assert set(names(await read_all(log))) == {f"{index}" for index in range(20)}


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (Record("key", b"i" * 16, b""), error_pb2.ERROR_REASON_INVALID_REQUEST),
        (Record("key", b"i" * 16, b"p" * (MAX_PAYLOAD_BYTES + 1)), error_pb2.ERROR_REASON_TOO_LARGE),
        (Record("key", b"i" * 15, b"p"), error_pb2.ERROR_REASON_INVALID_REQUEST),
        (Record("", b"i" * 16, b"p"), error_pb2.ERROR_REASON_INVALID_REQUEST),
        (Record("k" * (MAX_KEY_BYTES + 1), b"i" * 16, b"p"), error_pb2.ERROR_REASON_INVALID_REQUEST),
        (Record("nul\0", b"i" * 16, b"p"), error_pb2.ERROR_REASON_INVALID_REQUEST),
        (Record("\ud800", b"i" * 16, b"p"), error_pb2.ERROR_REASON_INVALID_REQUEST),
        (Record("key", b"i" * 16, b"p", {"": "v"}), error_pb2.ERROR_REASON_INVALID_REQUEST),
        (
            Record("key", b"i" * 16, b"p", {"n": "v" * (MAX_HEADER_BYTES + 1)}),
            error_pb2.ERROR_REASON_INVALID_REQUEST,
        ),
        (
            Record("key", b"i" * 16, b"p", {f"{index}": "v" for index in range(MAX_HEADERS + 1)}),
            error_pb2.ERROR_REASON_INVALID_REQUEST,
        ),
    ],
    ids=lambda value: None,
)
async def test_a_record_over_the_limits_is_refused(log: Log, refused: Record, reason: ErrorReason.ValueType) -> None:
    assert await reason_of(log.append("topic", [refused])) == reason


async def test_an_append_over_the_limits_is_refused(log: Log) -> None:
    many = [record(f"{index}") for index in range(MAX_APPEND_RECORDS + 1)]
    assert await reason_of(log.append("topic", many)) == error_pb2.ERROR_REASON_INVALID_REQUEST
    large = [Record("key", ids.record_id(f"{n}"), b"p" * MAX_PAYLOAD_BYTES) for n in range(17)]
    assert len(large) * MAX_PAYLOAD_BYTES > MAX_APPEND_BYTES
    assert await reason_of(log.append("topic", large)) == error_pb2.ERROR_REASON_TOO_LARGE
    acks = await log.append("topic", large[:-1])  # More than one batch of a driver, and still one append.
    assert len(acks) == len(large) - 1


async def test_a_topic_is_made_once_and_cannot_be_another(log: Log) -> None:
    await log.ensure_topic(Topic("topic", PARTITIONS))
    await log.ensure_topic(Topic("topic", PARTITIONS, retention=timedelta(days=1)))
    for other in (Topic("topic", PARTITIONS + 1), Topic("topic", PARTITIONS, durability="relaxed")):
        assert await reason_of(log.ensure_topic(other)) == error_pb2.ERROR_REASON_TOPIC_MISMATCH


async def test_what_does_not_exist_is_named(log: Log) -> None:
    for call in (log.read("no-such", 0, 0, 1, 0), log.join("no-such", "group", "a"), log.end_offsets("no-such")):
        assert await reason_of(call) == error_pb2.ERROR_REASON_TOPIC_NOT_FOUND
    for call in (log.read("topic", PARTITIONS, 0, 1, 0), log.read("topic", 0, 0, 0, 0)):
        assert await reason_of(call) == error_pb2.ERROR_REASON_INVALID_REQUEST


async def test_a_read_below_what_is_retained_fails_and_a_group_goes_on_above_it(store: Store, log: Log) -> None:
    await log.ensure_topic(Topic("short", 1, retention=timedelta(hours=1)))
    other = await store.open()
    lease = await other.join("short", "group", "a")
    await log.append_all([("short", [record("old")]), ("topic", [record("kept")])])
    await store.expire(log)
    await log.append("short", [record("new")])

    for reader in (log, other):
        assert await reason_of(reader.read("short", 0, 0, 10, 0)) == error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE
        assert names(await reader.read("short", 0, 1, 10, 0)) == ["new"]
    assert names(await poll_all(other, lease, 1)) == ["new"]
    assert names(await read_all(log)) == ["kept"]
    if store.dedups:  # The id of a record that is gone is free again.
        assert await log.append("short", [record("old")]) == [Ack(0, 2)]


# Groups


async def test_nothing_committed_is_not_an_offset_of_zero(log: Log) -> None:
    assert await log.committed("topic", "group") == {}
    lease = await log.join("topic", "group", "a")
    assert lease == Lease("topic", "group", "a", lease.generation, tuple(range(PARTITIONS)))
    assert await log.committed("topic", "group") == {}
    await log.commit(lease, {2: 0})
    assert await log.committed("topic", "group") == {2: 0}


async def test_lag_is_the_end_less_what_is_committed(log: Log) -> None:
    await log.append("topic", [record(f"{index}") for index in range(10)])
    lease = await log.join("topic", "group", "a")
    records = await log.poll(lease, 4, WAIT)
    partition = records[0].partition
    await log.commit(lease, {partition: records[-1].offset + 1})

    ends, committed = await log.end_offsets("topic"), await log.committed("topic", "group")
    assert {p: ends[p] - offset for p, offset in committed.items()} == {partition: 6}


async def test_a_poll_gives_each_record_once_and_commits_of_strange_partitions_are_refused(log: Log) -> None:
    lease = await log.join("topic", "group", "a")
    assert await log.join("topic", "group", "a") == lease
    given: list[str] = []
    for index in range(30):
        await log.append("topic", [record(f"{index}", key=f"key{index}")])
        given += names(await log.poll(lease, 2, WAIT))
    assert sorted(given) == sorted(f"{index}" for index in range(30))
    assert await log.poll(lease, 100, 0) == []
    assert await reason_of(log.commit(lease, {PARTITIONS: 1})) == error_pb2.ERROR_REASON_INVALID_REQUEST


async def test_two_groups_do_not_know_of_each_other(log: Log) -> None:
    await log.append("topic", [record("a"), record("b")])
    one, two = await log.join("topic", "one", "m"), await log.join("topic", "two", "m")
    records = await poll_all(log, one, 2)
    await log.commit(one, {records[0].partition: records[-1].offset + 1})

    assert names(await poll_all(log, two, 2)) == ["a", "b"]
    assert await log.committed("topic", "two") == {}


async def test_what_a_handler_failed_on_is_given_again(log: Log) -> None:
    await log.append("topic", [record("a"), record("b")])
    lease = await log.join("topic", "group", "m")
    records = await poll_all(log, lease, 2)
    await log.commit(lease, {records[0].partition: records[0].offset + 1})
    await log.leave(lease)
    await log.leave(lease)

    assert names(await poll_all(log, await log.join("topic", "group", "m"), 1)) == ["b"]


async def test_no_two_members_hold_one_partition(store: Store, log: Log) -> None:
    logs = [log, log, await store.open(), await store.open()]
    leases: list[Lease] = []
    for count in range(1, 5):
        newcomer = await logs[count - 1].join("topic", "group", f"m{count}")
        for index, lease in enumerate(leases):
            await until_fenced(logs[index], lease)
            leases[index] = await logs[index].join("topic", "group", lease.member)
        leases.append(newcomer)
        assert {lease.generation for lease in leases} == {newcomer.generation}
        held = [partition for lease in leases for partition in lease.partitions]
        assert sorted(held) == list(range(PARTITIONS))
        assert max(len(lease.partitions) for lease in leases) == -(-PARTITIONS // count)

    await logs[3].leave(leases.pop())
    for index, lease in enumerate(leases):
        await until_fenced(logs[index], lease)
        leases[index] = await logs[index].join("topic", "group", lease.member)
    assert sorted(p for lease in leases for p in lease.partitions) == list(range(PARTITIONS))


async def test_a_member_without_a_partition_waits_for_one(store: Store, log: Log) -> None:
    await log.ensure_topic(Topic("single", 1))
    other = await store.open()
    owner = await log.join("single", "group", "a")
    idle = await other.join("single", "group", "b")
    await until_fenced(log, owner)
    owner = await log.join("single", "group", "a")
    assert (owner.partitions, idle.partitions) == ((0,), ())
    waiting = asyncio.create_task(until_fenced(other, idle))
    await log.leave(owner)
    await waiting
    assert (await other.join("single", "group", "b")).partitions == (0,)


async def test_a_stale_lease_cannot_commit_or_poll(store: Store, log: Log) -> None:
    await log.append("topic", [record("a")])
    stale = await log.join("topic", "group", "old")
    (given,) = await poll_all(log, stale, 1)
    other = await store.open()
    await other.join("topic", "group", "new")

    assert await reason_of(log.commit(stale, {given.partition: 1})) == error_pb2.ERROR_REASON_FENCED
    assert await reason_of(log.poll(stale, 1, 0)) == error_pb2.ERROR_REASON_FENCED
    assert await log.committed("topic", "group") == {}
    await log.leave(stale)
    assert (await log.join("topic", "group", "old")).partitions  # Leaving by a stale lease has taken nothing away.


async def test_a_silent_member_loses_its_partitions_and_its_work_is_given_again(store: Store) -> None:
    log, other = await store.open(lease_seconds=0.6), await store.open(lease_seconds=0.6)
    await log.ensure_topic(Topic("single", 1))
    await log.append("single", [record("a"), record("b")])
    silent = await log.join("single", "group", "silent")
    records = await poll_all(log, silent, 2)
    await log.commit(silent, {0: records[0].offset + 1})

    lease = await other.join("single", "group", "eager")
    assert lease.partitions == ()
    assert await until_fenced(other, lease) == []  # It polls, so its own lease stays alive meanwhile.
    lease = await other.join("single", "group", "eager")
    assert names(await poll_all(other, lease, 1)) == ["b"]
    assert await reason_of(log.commit(silent, {0: 2})) == error_pb2.ERROR_REASON_FENCED


async def test_a_member_that_only_waits_keeps_its_lease(store: Store) -> None:
    log, other = await store.open(lease_seconds=0.4), await store.open(lease_seconds=0.4)
    await log.ensure_topic(Topic("single", 1))
    lease = await log.join("single", "group", "patient")
    assert await log.poll(lease, 1, 1.0) == []
    assert await other.read("single", 0, 1_000_000, 1, 0.2) == []  # Half a lease of silence, after the wait.
    await other.append("single", [record("a")])
    assert names(await log.poll(lease, 1, WAIT)) == ["a"]


async def test_a_cancelled_poll_loses_nothing(store: Store, log: Log) -> None:
    other = await store.open()
    lease = await log.join("topic", "group", "m")
    given: list[str] = []
    appending = asyncio.gather(*(other.append("topic", [record(f"{n}", f"key{n}")]) for n in range(200)))
    async with asyncio.timeout(WAIT):
        for pause in range(10_000):
            poll = asyncio.create_task(log.poll(lease, 3, WAIT))
            for _ in range(pause % 7):
                await asyncio.sleep(0)
            if pause % 3:
                poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                given += names(await poll)
            if len(given) >= 200:
                break
    await appending
    assert sorted(given) == sorted(f"{n}" for n in range(200))


# Crashes


async def test_what_was_acknowledged_to_a_killed_process_is_there(store: Store, log: Log) -> None:
    async with worker(store, "append") as process:
        acknowledged = await lines(process, count=200)
        process.kill()
        acknowledged += await lines(process)
    stored = names(await read_all(log))
    assert set(acknowledged) <= set(stored)
    for key in range(8):
        numbers = [int(name.split("-")[1]) for name in stored if name.startswith(f"key{key}-")]
        assert numbers == list(range(len(numbers)))


async def test_another_member_goes_on_from_the_commit_of_a_killed_one(store: Store, log: Log) -> None:
    await log.append("topic", [record(f"{index}") for index in range(6)])
    async with worker(store, "consume") as process:
        assert await lines(process, last="taken") == ["0", "1", "2", "3"]
        lease = await log.join("topic", "group", "heir")
        assert len(lease.partitions) == PARTITIONS // 2
        process.kill()
        await until_fenced(log, lease)
        lease = await log.join("topic", "group", "heir")
        assert lease.partitions == tuple(range(PARTITIONS))
        assert names(await poll_all(log, lease, 4)) == ["2", "3", "4", "5"]


async def test_acknowledged_records_survive_the_kill_of_the_broker_and_the_log_recovers(store: Store) -> None:
    await store.start_broker()
    log = await store.open()
    await log.ensure_topic(Topic("topic", PARTITIONS))
    lease = await log.join("topic", "group", "m")
    acknowledged: list[str] = []

    async def produce(key: str) -> None:
        for number in range(1_000_000):
            await log.append("topic", [record(f"{key}-{number}", key)])
            acknowledged.append(f"{key}-{number}")

    producing = [asyncio.create_task(produce(f"key{index}")) for index in range(8)]
    async with asyncio.timeout(WAIT):
        while len(acknowledged) < 100:
            await log.poll(lease, 100, WAIT)
        await store.kill_broker()
        errors = await asyncio.gather(*producing, return_exceptions=True)
    unavailable = error_pb2.ERROR_REASON_LOG_UNAVAILABLE
    assert [error.reason for error in errors if isinstance(error, AgentShellError)] == [unavailable] * 8
    assert await reason_of(log.append("topic", [record("while down")])) == unavailable
    assert await reason_of(log.read("topic", 0, 1_000_000, 1, WAIT)) == unavailable
    assert await reason_of(log.health()) == unavailable

    await store.start_broker()
    assert set(acknowledged) <= set(names(await recovered(lambda: read_all(log))))
    await recovered(lambda: log.append("topic", [record("while down")]))
    lease = await recovered(lambda: log.join("topic", "group", "m"))
    assert {"while down", *acknowledged} <= set(names(await poll_all(log, lease, len(await read_all(log)))))


async def recovered(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Returns what a call answers once the log no longer fails it."""
    async with asyncio.timeout(3 * WAIT):
        while True:
            try:
                return await call()
            except AgentShellError as error:
                if error.reason != error_pb2.ERROR_REASON_LOG_UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)


async def test_a_process_that_was_cut_off_hears_again_and_its_leases_are_over(store: Store, log: Log) -> None:
    other = await store.open()
    partition = partition_of("key", PARTITIONS)
    lease = await log.join("topic", "group", "m")
    reading = asyncio.create_task(log.read("topic", partition, 0, 10, WAIT))
    await store.cut()
    with contextlib.suppress(AgentShellError):  # Its wait may end with the connection.
        assert await reading == []
    await until_fenced(log, lease)
    await recovered(lambda: log.health())
    reading = asyncio.create_task(recovered(lambda: log.read("topic", partition, 0, 10, WAIT)))
    await recovered(lambda: other.append("topic", [record("a")]))
    assert names(await reading) == ["a"]
    assert (await recovered(lambda: log.join("topic", "group", "m"))).partitions == tuple(range(PARTITIONS))


async def test_a_closed_log_says_so(store: Store, log: Log) -> None:
    await log.append("topic", [record("a")])
    reading = asyncio.create_task(log.read("topic", 0, 1_000_000, 1, WAIT))
    appending = asyncio.create_task(log.append("topic", [record("b")]))
    await asyncio.sleep(0)
    await log.close()
    unavailable = error_pb2.ERROR_REASON_LOG_UNAVAILABLE
    assert await reason_of(awaited(reading)) == unavailable
    assert len(await appending) == 1
    assert await reason_of(log.append("topic", [record("c")])) == unavailable


async def awaited(task: asyncio.Task[T]) -> T:
    return await task


async def test_an_idle_log_uses_little_of_the_processor(store: Store, log: Log) -> None:
    lease = await log.join("topic", "group", "m")
    await log.poll(lease, 1, 0)
    cpu, wall = time.process_time(), time.monotonic()
    await asyncio.gather(log.poll(lease, 1, 1.5), *(log.read("topic", p, 0, 1, 1.5) for p in range(PARTITIONS)))
    assert time.process_time() - cpu < 0.2 * (time.monotonic() - wall)


async def test_a_store_of_another_version_is_refused_with_the_reason(store: Store) -> None:
    await store.make_incompatible()
    with pytest.raises(AgentShellError, match="9999") as raised:
        await store.open()
    assert raised.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
