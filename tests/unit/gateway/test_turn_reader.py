"""What a reader gets, and when, over a real log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, closing
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.gateway.turn_log import SESSION, TENANT, append, beginning, done, end, say

from agentshell.db.database import Database
from agentshell.gateway import feed as feed_module
from agentshell.gateway.feed import Feeds
from agentshell.gateway.turn_index import IndexedTurn
from agentshell.gateway.turn_reader import TurnReader
from agentshell.log.log import Log, StoredRecord, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import OutputDelta, TurnEvent, TurnUpdate
from kfm.turn.v1.turn_pb2 import Turn

Batches = AsyncGenerator[list[TurnUpdate]]
WAIT_SECONDS = 10.0


async def reader(
    log: Log, feeds: Feeds, turn_id: str = "T", session: str = SESSION, *, is_new: bool = False
) -> Batches:
    row = IndexedTurn(TENANT, Turn(turn_id=turn_id, session_id=session), 0, 0, is_new=is_new)
    with closing(TurnReader(log, feeds, row, 0, None)) as turn_reader:
        while batch := await turn_reader.next():
            yield batch


def told(*news: TurnEvent | OutputDelta) -> list[TurnUpdate]:
    return [TurnUpdate(event=new) if isinstance(new, TurnEvent) else TurnUpdate(delta=new) for new in news]


async def rest(batches: Batches) -> list[TurnUpdate]:
    """Returns all remaining updates."""
    async with asyncio.timeout(WAIT_SECONDS):
        return [update async for updates in batches for update in updates]


async def follow(batches: Batches) -> asyncio.Task[list[TurnUpdate]]:
    """Requests the next batch, and returns once the reader waits for it."""
    waiting = asyncio.ensure_future(anext(batches))
    async with asyncio.timeout(WAIT_SECONDS):
        while not [task for task in asyncio.all_tasks() if task.get_name().startswith("feed of")]:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    return waiting


@pytest.fixture
async def other(log: PostgresLog, database: Database) -> AsyncGenerator[PostgresLog]:
    """The same log, opened as by another process."""
    other = await PostgresLog.open(database)
    yield other
    await other.close()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps readers that got something from getting mere progress while the test runs."""
    monkeypatch.setattr(feed_module, "_PACE_SECONDS", 1000.0)
    monkeypatch.setattr(feed_module, "_MAX_PACE_SECONDS", 1000.0)


async def test_a_reader_is_told_what_was_and_what_comes_of_its_turn_alone(log: PostgresLog) -> None:
    feeds = Feeds(log)
    events = [*beginning("T", "a"), *done("T", "a"), end("T")]
    others = [*beginning("U", "a", session="u"), *done("U", "a", session="u"), end("U", session="u")]
    await append(log, *(event for pair in zip(events[:2], others[:2], strict=True) for event in pair))
    async with aclosing(reader(log, feeds)) as batches, aclosing(reader(log, feeds, "U", "u")) as other_batches:
        assert await anext(batches) == told(*events[:2])
        assert await anext(other_batches) == told(*others[:2])
        waiting = await follow(batches)
        await append(log, events[2], others[2])
        assert await waiting == told(events[2])
        delta = await say(log, "T", "a", 0)
        await append(log, others[3], events[3], events[4], others[4])
        assert await rest(batches) == told(delta, *events[3:])
        assert await rest(other_batches) == told(*others[2:])


async def test_a_turn_that_has_just_begun_is_followed_from_its_beginning_without_looking_for_the_logs_end(
    log: PostgresLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, waits = log.read, list[float]()

    async def noted(topic: str, partition: int, offset: int, limit: int, wait: float) -> list[StoredRecord]:
        waits.append(wait)
        return await read(topic, partition, offset, limit, wait)

    monkeypatch.setattr(log, "read", noted)
    events = [*beginning("T", "a"), *done("T", "a"), end("T")]
    await append(log, events[0])
    async with aclosing(reader(log, Feeds(log), is_new=True)) as batches:
        assert await anext(batches) == told(events[0])
        await append(log, *events[1:])
        assert await rest(batches) == told(*events[1:])
    assert 0.0 not in waits


@pytest.mark.parametrize("is_new", [True, False])
async def test_an_attempts_last_words_come_before_its_end_where_another_process_has_not_told_of_them(
    log: PostgresLog, other: PostgresLog, database: Database, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    async with database.connection() as connection:
        query = "SELECT partition_id FROM log.partitions JOIN log.topics USING (topic_id) WHERE name = %s"
        (outputs_id,) = await (await connection.execute(query, (envelope.OUTPUTS,))).fetchone() or (0,)
    heard = log.heard_ends

    def heard_without_outputs(ends: Mapping[int, int]) -> None:
        heard({partition_id: end for partition_id, end in ends.items() if partition_id != outputs_id})

    monkeypatch.setattr(log, "heard_ends", heard_without_outputs)
    events = [*beginning("T", "a"), *done("T", "a", delta_count=1), end("T")]
    await append(other, *events[:2])
    assert len(await log.read(envelope.TURNS, 0, 0, 10, WAIT_SECONDS)) == 2, "it knows now that there is another"
    async with aclosing(reader(log, Feeds(log), is_new=is_new)) as batches:
        assert await anext(batches) == told(*events[:2])
        waiting = await follow(batches)
        await append(other, events[2])
        delta = await say(other, "T", "a", 0)
        await append(other, *events[3:])
        assert [*await waiting, *await rest(batches)] == told(events[2], delta, *events[3:])
    assert await rest(reader(log, Feeds(log), is_new=is_new)) == told(*events[:3], delta, *events[3:])


@pytest.mark.usefixtures("unhurried")
async def test_progress_waits_for_what_is_urgent_and_text_and_the_end_wait_for_nothing(log: PostgresLog) -> None:
    events = [*beginning("T", "a", "b"), *done("T", "a"), *done("T", "b"), end("T")]
    await append(log, events[0])
    async with aclosing(reader(log, Feeds(log))) as batches:
        assert await anext(batches) == told(events[0])
        waiting = await follow(batches)
        await append(log, events[1])
        await append(log, events[2])
        delta = await say(log, "T", "a", 0)
        assert await waiting == told(*events[1:3], delta)
        waiting = await follow(batches)
        await append(log, *events[3:5])
        await append(log, *events[5:])
        assert await waiting == told(*events[3:])
        assert await rest(batches) == []


async def test_a_reader_that_falls_behind_misses_nothing(log: PostgresLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_MAX_WAITING_RECORDS", 3)
    steps = [f"s{number}" for number in range(5)]
    events = [*beginning("T", *steps), *(event for step in steps for event in done("T", step)), end("T")]
    await append(log, *events[:2])
    async with aclosing(reader(log, Feeds(log))) as batches:
        assert await anext(batches) == told(*events[:2])
        waiting = await follow(batches)
        await append(log, events[2])
        assert await waiting == told(events[2])
        delta = await say(log, "T", "s0", 0)
        await append(log, *events[3:])
        assert await rest(batches) == told(delta, *events[3:])


async def test_what_waits_for_a_reader_that_does_not_read_is_let_go_and_read_in_the_log_later(log: PostgresLog) -> None:
    steps = [f"s{number}" for number in range(12)]
    events = [*beginning("T", *steps), *(event for step in steps for event in done("T", step, 500_000)), end("T")]
    await append(log, *events[:2])
    feeds = Feeds(log)
    async with aclosing(reader(log, feeds)) as batches, aclosing(reader(log, feeds)) as watched:
        assert await anext(batches) == told(*events[:2])
        waiting = await follow(batches)
        await append(log, events[2])
        assert await waiting == told(events[2])
        follower = feeds.follow(0, envelope.session_key(TENANT, SESSION), (3, 0), near_end=True)
        assert follower is not None
        for event in events[3:]:
            await append(log, event)
        assert await rest(watched) == told(*events), "nobody waits for the one that does not read"
        assert (follower.cut, follower.take()) == (True, ([], []))
        feeds.unfollow(follower)
        assert await rest(batches) == told(*events[3:])


async def test_text_that_is_no_longer_retained_is_left_out_and_a_turn_that_is_not_is_named(log: PostgresLog) -> None:
    await log.ensure_topic(Topic(envelope.TURNS, 1, timedelta(days=9)))
    events = [*beginning("T", "a"), *done("T", "a"), end("T")]
    await append(log, *events[:3])
    await say(log, "T", "a", 0)
    await append(log, *events[3:])
    await log.apply_retention(datetime.now(UTC) + timedelta(days=1))
    assert await rest(reader(log, Feeds(log))) == told(*events)
    await log.apply_retention(datetime.now(UTC) + timedelta(days=10))
    with pytest.raises(AgentShellError, match="turn T, only how it ended: call GetTurn") as caught:
        await rest(reader(log, Feeds(log)))
    assert caught.value.reason == error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE


async def test_a_reader_is_told_when_the_log_fails(log: PostgresLog) -> None:
    await append(log, beginning("T")[0])
    async with aclosing(reader(log, Feeds(log))) as batches:
        assert len(await anext(batches)) == 1
        waiting = await follow(batches)
        await log.close()
        with pytest.raises(AgentShellError) as caught:
            await waiting
    assert caught.value.reason == error_pb2.ERROR_REASON_LOG_UNAVAILABLE


async def test_nothing_is_read_for_those_who_have_left(log: PostgresLog) -> None:
    await append(log, beginning("T")[0])
    batches = reader(log, Feeds(log))
    assert len(await anext(batches)) == 1
    waiting = await follow(batches)
    feeding = [task for task in asyncio.all_tasks() if task.get_name().startswith("feed of")]
    waiting.cancel()
    done, _ = await asyncio.wait([*feeding, waiting], timeout=WAIT_SECONDS)
    assert done == {*feeding, waiting}
