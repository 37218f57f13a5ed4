"""What a log does when processes, connections, the broker or the log itself end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.contract.log_stores import (
    PARTITIONS,
    WAIT,
    Store,
    T,
    names,
    poll_all,
    read_all,
    reason_of,
    record,
    recovered,
    until_fenced,
)

from agentshell.log.log import Log, Topic, partition_of
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

WORKER = Path(__file__).with_name("log_worker.py")
# Python function calls in 1.5 seconds; a log that polls without pause makes 100,000.
MOST_IDLE_CALLS = 20_000


@contextlib.asynccontextmanager
async def worker(store: Store, command: str, topic: str = "topic") -> AsyncGenerator[asyncio.subprocess.Process]:
    """Runs another process; it is killed at the end if not before."""
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
    """Reads `count` lines of a worker, or up to the line `last`."""
    assert process.stdout is not None
    said: list[str] = []
    async with asyncio.timeout(3 * WAIT):
        while len(said) != count and (line := (await process.stdout.readline()).decode().strip()) != last:
            said.append(line)
    return said


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
    calls = (log.append("topic", [record("while down")]), log.read("topic", 0, 1_000_000, 1, WAIT), log.health())
    assert await asyncio.gather(*map(reason_of, calls)) == [unavailable] * 3

    await store.start_broker()
    assert set(acknowledged) <= set(names(await recovered(lambda: read_all(log))))
    await recovered(lambda: log.append("topic", [record("while down")]))
    lease = await recovered(lambda: log.join("topic", "group", "m"))
    assert {"while down", *acknowledged} <= set(names(await poll_all(log, lease, len(await read_all(log)))))


async def test_a_process_that_was_cut_off_hears_again_and_its_leases_are_over(store: Store, log: Log) -> None:
    other = await store.open()
    partition = partition_of("key", PARTITIONS)
    lease = await log.join("topic", "group", "m")
    reading = asyncio.create_task(log.read("topic", partition, 0, 10, WAIT))
    await store.cut()
    with contextlib.suppress(AgentShellError):  # The read may end with the connection.
        assert await reading == []
    await until_fenced(log, lease)
    await recovered(lambda: log.health())
    reading = asyncio.create_task(recovered(lambda: log.read("topic", partition, 0, 10, WAIT)))
    await recovered(lambda: other.append("topic", [record("a")]))
    assert names(await reading)[:1] == ["a"]  # A log that drops no duplicates may have it twice.
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


async def test_an_idle_log_sleeps(store: Store, log: Log) -> None:
    lease = await log.join("topic", "group", "m")
    await log.poll(lease, 1, 0)
    calls = Counter[str]()  # Not CPU time, which varies on a busy machine.
    sys.setprofile(lambda frame, event, _: calls.update([event]))
    try:
        await asyncio.gather(log.poll(lease, 1, 1.5), *(log.read("topic", p, 0, 1, 1.5) for p in range(PARTITIONS)))
    finally:
        sys.setprofile(None)
    assert calls["call"] < MOST_IDLE_CALLS


async def test_a_store_of_another_version_is_refused_with_the_reason(store: Store) -> None:
    await store.make_incompatible()
    with pytest.raises(AgentShellError, match="9999") as raised:
        await store.open()
    assert raised.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
