from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentshell.log import tail as tail_module
from agentshell.log.log import Record, StoredRecord
from agentshell.log.tail import Bell, Tail

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def run(start: int, count: int, size_bytes: int = 1) -> list[StoredRecord]:
    return [
        StoredRecord(0, offset, NOW, Record("key", offset.to_bytes(16), b"p" * size_bytes))
        for offset in range(start, start + count)
    ]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=12), st.integers(0, 45))
def test_memory_gives_what_was_added_without_a_hole_or_nothing(runs: list[tuple[int, int]], offset: int) -> None:
    tail = Tail("topic", 0, 1)
    for start, count in runs:
        tail.add(start, run(start, count))

    newest = max((start + count for start, count in runs), default=0)
    assert tail.next_offset == (newest or None)
    found = tail.slice(offset, 100)
    assert found == (run(offset, newest - offset) if found else [])
    assert tail.slice(offset, 2) == found[:2]
    assert not runs or tail.slice(newest - 1, 1) == run(newest - 1, 1)


def test_the_oldest_records_go_when_there_are_too_many_or_they_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "MAX_TAIL_RECORDS", 10)
    monkeypatch.setattr(tail_module, "MAX_TAIL_BYTES", 100)
    tail = Tail("topic", 0, 1)
    for offset in range(25):
        tail.add(offset, run(offset, 1))
    assert (tail.slice(14, 100), tail.slice(15, 100)) == ([], run(15, 10))
    tail.add(25, run(25, 3, size_bytes=40))
    assert (tail.slice(25, 100), tail.slice(26, 100)) == ([], run(26, 2, size_bytes=40))
    tail.add(28, run(28, 1, size_bytes=101))
    assert (tail.slice(28, 100), tail.next_offset) == ([], 29)


async def test_a_bell_wakes_all_who_wait_and_nobody_who_has_left() -> None:
    one, two = Bell(), Bell()
    waiting = [asyncio.create_task(Bell.first(bells, 10)) for bells in ([one], [one, two], [two])]
    cancelled = asyncio.create_task(Bell.first([one], 10))
    await asyncio.sleep(0)
    cancelled.cancel()
    one.ring()
    assert await asyncio.gather(*waiting[:2]) == [True, True]
    two.ring()
    assert await waiting[2]
    assert not await Bell.first([one, two], 0)
    assert not await Bell.first([one, two], 0.001)
    assert [one.awaited, two.awaited] == [False, False]


async def test_a_tail_rings_only_when_the_partition_grows_or_is_forgotten() -> None:
    tail = Tail("topic", 0, 1)
    tail.observe(0, 5)
    waiting = asyncio.create_task(Bell.first([tail.bell], 10))
    await asyncio.sleep(0)
    tail.observe(3, 5)
    tail.observe(0, 4)
    assert (tail.base_offset, tail.next_offset) == (3, 5)
    await asyncio.sleep(0)
    assert not waiting.done()
    tail.forget()
    assert await waiting
    assert (tail.base_offset, tail.next_offset) == (0, None)
