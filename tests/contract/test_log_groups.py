"""A log gives each record of a topic to one member of a group, and leaves none out."""

from __future__ import annotations

import asyncio
import contextlib

from tests.contract.log_stores import PARTITIONS, WAIT, Store, names, poll_all, reason_of, record, until_fenced

from agentshell.log.log import Lease, Log, Topic
from kfm.error.v1 import error_pb2

_LEASE_SECONDS = 1.5


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
    assert (await log.join("topic", "group", "old")).partitions  # Leaving with a stale lease took nothing away.


async def test_a_silent_member_loses_its_partitions_and_its_work_is_given_again(store: Store) -> None:
    log, other = await store.open(lease_seconds=_LEASE_SECONDS), await store.open(lease_seconds=_LEASE_SECONDS)
    await log.ensure_topic(Topic("single", 1))
    await log.append("single", [record("a"), record("b")])
    silent = await log.join("single", "group", "silent")
    records = await poll_all(log, silent, 2)
    await log.commit(silent, {0: records[0].offset + 1})

    lease = await other.join("single", "group", "eager")
    if not lease.partitions:  # As expected, unless this process itself was delayed for as long.
        assert await until_fenced(other, lease) == []  # Polling keeps its own lease alive meanwhile.
        lease = await other.join("single", "group", "eager")
    assert names(await poll_all(other, lease, 1)) == ["b"]
    assert await reason_of(log.commit(silent, {0: 2})) == error_pb2.ERROR_REASON_FENCED


async def test_a_member_that_only_waits_keeps_its_lease(store: Store) -> None:
    log, other = await store.open(lease_seconds=_LEASE_SECONDS), await store.open(lease_seconds=_LEASE_SECONDS)
    await log.ensure_topic(Topic("single", 1))
    lease = await log.join("single", "group", "patient")
    assert await log.poll(lease, 1, 1.5 * _LEASE_SECONDS) == []
    assert await other.read("single", 0, 1_000_000, 1, 0.2 * _LEASE_SECONDS) == []  # Some silence is allowed.
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
