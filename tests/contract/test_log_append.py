"""A log keeps records, once and in order, and reads them back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tests.contract.log_stores import PARTITIONS, WAIT, Store, names, poll_all, read_all, reason_of, record

from agentshell.log.log import (
    MAX_APPEND_BYTES,
    MAX_APPEND_RECORDS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    Ack,
    Log,
    Record,
    StoredRecord,
    Topic,
    partition_of,
)
from agentshell.mesh import ids
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason


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


async def test_who_does_not_wait_reads_what_another_process_has_just_appended(store: Store, log: Log) -> None:
    other = await store.open()
    ack = (await other.append("topic", [record("first")]))[0]
    assert names(await log.read("topic", ack.partition, 0, 10, WAIT)) == ["first"]
    ack = (await other.append("topic", [record("second")]))[0]
    assert names(await log.read("topic", ack.partition, ack.offset, 10, WAIT)) == ["second"], (
        "it was told of by another"
    )
    for number in range(50):
        offset = ack.offset + 1
        ack = (await other.append("topic", [record(f"{number}")]))[0]
        assert names(await log.read("topic", ack.partition, offset, 10, 0.0)) == [f"{number}"]


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

    for reader in (log, await store.open()):  # From memory and from the store.
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
    acks = await log.append("topic", large[:-1])  # Several batches of a driver, yet one append.
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
    if store.dedups:  # The id of a deleted record is free again.
        assert await log.append("short", [record("old")]) == [Ack(0, 2)]
