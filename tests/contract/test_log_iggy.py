"""What concerns only the Iggy driver: whom its server sees, what connections cost a lease, who may log in."""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from tests.contract.log_stores import (
    NEEDS_IGGY,
    PARTITIONS,
    STORES,
    Store,
    names,
    read_all,
    reason_of,
    record,
    until_fenced,
)

from agentshell.log.log import Lease, Log, Topic
from agentshell.mesh.errors import AgentShellError
from agentshell.turn.records import event_of, record_of, stamp
from agentshell.turn.state import apply
from kfm.error.v1 import error_pb2
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

pytest.importorskip("apache_iggy", reason="the SDK of Iggy is not installed")
from apache_iggy import IggyClient

from agentshell.log.iggy import IggyLog
from agentshell.log.iggy_wire import Wire, tcp_config

LEASE_SECONDS = 600.0  # No lease expires in a test.
MEMBER = """
import asyncio, sys
from agentshell.log.iggy import IggyLog

async def main(url, stream):
    log = await IggyLog.open(url, stream=stream, lease_seconds=600)
    lease = await log.join("topic", "group", "victim")
    print(len(lease.partitions), flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(params=[pytest.param("iggy", marks=NEEDS_IGGY)])
async def store(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> AsyncGenerator[Store]:
    store = STORES[request.param](database_url, tmp_path)
    yield store
    await store.close()


@pytest.fixture
async def log(store: Store) -> IggyLog:
    log = await open_log(store)
    await log.ensure_topic(Topic("topic", PARTITIONS))
    return log


async def open_log(store: Store) -> IggyLog:
    log = await store.open(lease_seconds=LEASE_SECONDS)
    assert isinstance(log, IggyLog)
    return log


def journal(store: Store) -> tuple[Wire, str]:
    """Returns a connection to the stream of group journals, and the name of the tests' journal."""
    server, _, stream = store.url.partition("#")
    return Wire(server, f"{stream}.groups"), "topic/group"


async def join(log: Log, member: str) -> Lease:
    return await log.join("topic", "group", member)


async def test_the_partitions_of_a_killed_process_move_at_once(store: Store, log: IggyLog) -> None:
    server, _, stream = store.url.partition("#")
    lease = await join(log, "heir")
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MEMBER, server, stream, stdout=asyncio.subprocess.PIPE
    )
    await until_fenced(log, lease)
    lease = await join(log, "heir")
    assert len(lease.partitions) == PARTITIONS // 2
    victim.kill()
    await victim.communicate()
    await until_fenced(log, lease)
    assert (await join(log, "heir")).partitions == tuple(range(PARTITIONS))


async def test_a_process_that_the_server_no_longer_sees_joins_anew(store: Store, log: IggyLog) -> None:
    other = await open_log(store)
    wire, topic = journal(store)
    lease = await join(log, "a")
    (process,) = await wire.groups(topic)
    await join(other, "b")
    await until_fenced(log, lease)
    lease = await join(log, "a")

    await wire.remove_group(topic, process)
    await until_fenced(log, lease)
    held = (await join(log, "a")).partitions + (await join(other, "b")).partitions
    assert sorted(held) == list(range(PARTITIONS))
    assert list((await wire.groups(topic)).values()) == [1, 1]
    await wire.close()


async def test_a_process_that_leaves_leaves_no_trace(store: Store, log: IggyLog) -> None:
    other = await open_log(store)
    await join(log, "a")
    lease = await join(other, "b")
    wire, topic = journal(store)
    assert list((await wire.groups(topic)).values()) == [1, 1]
    await other.leave(lease)
    await other.close()
    assert list((await wire.groups(topic)).values()) == [1]
    await wire.close()


async def test_an_owner_whose_lease_is_over_appends_no_more(store: Store, log: IggyLog) -> None:
    other = await open_log(store)
    stale = await join(log, "old")
    assert len(await log.append("topic", [record("before")], stale)) == 1
    await join(other, "new")
    await until_fenced(log, stale)

    after = [record("after")]
    assert await reason_of(log.append("topic", after, stale)) == error_pb2.ERROR_REASON_FENCED
    assert await reason_of(log.append_all([("topic", after), ("topic", after)], stale)) == error_pb2.ERROR_REASON_FENCED
    assert names(await read_all(log)) == ["before"]


async def test_an_owner_that_has_stood_still_for_a_lease_appends_no_more(store: Store) -> None:
    log = await store.open(lease_seconds=0.3)
    assert isinstance(log, IggyLog)
    await log.ensure_topic(Topic("topic", PARTITIONS))
    lease = await join(log, "owner")
    time.sleep(0.4)  # noqa: ASYNC251 - the process hangs, as if stopped or swapping
    assert await reason_of(log.append("topic", [record("late")], lease)) == error_pb2.ERROR_REASON_FENCED
    assert names(await read_all(log)) == []


async def test_what_two_owners_decide_alike_has_one_effect(store: Store, log: IggyLog) -> None:
    """The old owner appends without its lease, the worst case that Iggy lets through: only the ids protect."""
    other = await open_log(store)
    requested = happened(turn_requested=e.TurnRequested(personality_id="guide"))
    planned = happened(plan_created=e.PlanCreated(plan=t.Plan(steps=[t.Step(step_id="a", noop=t.NoopStep())])))
    scheduled = happened(step_scheduled=e.StepScheduled(step_id="a", attempt=1))
    succeeded = happened(step_succeeded=e.StepSucceeded(step_id="a", attempt=1))
    await log.append("topic", [record_of(requested)])
    await join(log, "old")
    lease = await join(other, "new")
    await other.append("topic", [record_of(planned), record_of(scheduled)], lease)
    await log.append("topic", [record_of(planned), record_of(scheduled)])
    await other.append("topic", [record_of(succeeded)], lease)
    await log.append("topic", [record_of(scheduled)])

    turn, expected = t.Turn(), t.Turn()
    written = [event_of(stored.record) for stored in await read_all(other)]
    assert [apply(turn, event) for event in written] == [True, True, True, False, False, True, False]
    assert all(apply(expected, event) for event in (requested, planned, scheduled, succeeded))
    assert turn == expected


def happened(**event: Any) -> e.TurnEvent:
    return stamp(e.TurnEvent(**event), "T", EventHeader(tenant_id="acme", session_id="s"))


async def test_each_topic_has_its_own_retention_and_another_one_at_any_start(store: Store, log: IggyLog) -> None:
    server, _, stream = store.url.partition("#")
    wire = Wire(server, stream)
    week, month = timedelta(days=7), timedelta(days=30)
    for topics in ({"a": week, "b": month, "c": None}, {"a": month, "b": None, "c": week}):
        for name, retention in topics.items():
            await log.ensure_topic(Topic(name, 1, retention))
        assert {name: (await retained(wire, name)) for name in topics} == topics
    await wire.close()


async def retained(wire: Wire, name: str) -> timedelta | None:
    topic = await wire.topic(name)
    assert topic is not None
    return topic.retention


async def test_a_wrong_secret_is_refused_without_repeating_it(store: Store) -> None:
    host = urlsplit(store.url).netloc.rpartition("@")[2]
    for secret in ("iggy:xyzzy", "xyzzy"):
        with pytest.raises(AgentShellError) as raised:
            await IggyLog.open(f"iggy://{secret}@{host}")
        assert raised.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
        assert "xyzzy" not in str(raised.value)


async def test_a_token_will_do_for_a_user(store: Store) -> None:
    server, _, stream = store.url.partition("#")
    client = IggyClient(tcp_config(server))
    await client.connect()
    name = stream[:30].encode()
    answer = await client.send_binary_request(42, bytes([len(name)]) + name + struct.pack("<Q", 0))
    token = quote(answer[1:].decode(), safe="")
    log = await IggyLog.open(f"iggy://{token}@{urlsplit(server).netloc.rpartition('@')[2]}", stream=stream)
    try:
        await log.health()
    finally:
        await log.close()
        await client.send_binary_request(43, bytes([len(name)]) + name)
