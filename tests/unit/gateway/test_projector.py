"""What the index has of turns, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
from tests.unit.gateway.turn_log import TENANT, again, append, beginning, done, end, folded, until

from agentshell.db.database import Database
from agentshell.gateway import projector as projector_module
from agentshell.gateway.projector import Projector
from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from agentshell.log.log import Log
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import TurnEvent


class CountingIndex(TurnIndex):
    """The index, counting the bytes written to it."""

    def __init__(self, database: Database, *, has_log: bool = True) -> None:
        super().__init__(database, has_log=has_log)
        self.written_bytes = 0

    async def save(self, rows: Sequence[IndexedTurn]) -> None:
        self.written_bytes += sum(row.turn.ByteSize() for row in rows)
        await super().save(rows)


class FailingIndex(TurnIndex):
    """The index, on a database that fails once when `away` is set."""

    away = False

    async def save(self, rows: Sequence[IndexedTurn]) -> None:
        if self.away:
            self.away = False
            raise AgentShellError(error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE, "away")
        await super().save(rows)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the projector write each batch at once: a batch is what a test appends together."""
    monkeypatch.setattr(projector_module, "_LINGER_SECONDS", 0.0)
    monkeypatch.setattr(projector_module, "_RETRY_SECONDS", 0.0)


@asynccontextmanager
async def projecting(log: Log, index: TurnIndex) -> AsyncGenerator[None]:
    projecting = asyncio.create_task(Projector(log, index).run())
    yield
    projecting.cancel()
    await asyncio.gather(projecting, return_exceptions=True)


async def is_as(index: TurnIndex, *events: TurnEvent) -> bool:
    row = await index.find(TENANT, events[0].turn_id)
    return row is not None and row.turn == folded(*events)


async def test_a_turn_is_in_the_index_as_its_state_changes(log: Log, index: TurnIndex) -> None:
    events = [*beginning("T", "a"), *done("T", "a"), end("T")]
    async with projecting(log, index):
        for first, last in ((0, 1), (1, 2), (2, 5)):
            await append(log, *events[first:last])
            await until(partial(is_as, index, *events[:last]))


async def test_a_long_turn_costs_a_few_times_its_size(log: Log, database: Database) -> None:
    index = await CountingIndex.open(database)
    steps = [f"s{number}" for number in range(60)]
    events = beginning("T", *steps)
    await append(log, *events)
    async with projecting(log, index):
        for step in steps:
            events += done("T", step, size=2000)
            await append(log, *events[-2:])
            await is_read(log, index, f"after {step}")
        events.append(end("T"))
        await append(log, events[-1])
        await until(lambda: is_as(index, *events))
    assert index.written_bytes < 4 * folded(*events).ByteSize()


async def test_who_takes_over_misses_nothing_that_was_read_and_not_saved(log: Log, index: TurnIndex) -> None:
    events = [*beginning("T", "a", "b"), *done("T", "a", size=5000)]
    await append(log, *events)
    async with projecting(log, index):
        await until(lambda: is_as(index, *events))
        unsaved = done("T", "b")
        await append(log, *unsaved)
        await is_read(log, index, "after b")
    assert await is_as(index, *events), "too little has changed to write it all again"

    async with projecting(log, index):
        await append(log, end("T"))
        await until(lambda: is_as(index, *events, *unsaved, end("T")))


async def test_a_database_that_is_away_for_a_moment_loses_nothing_that_was_read(log: Log, database: Database) -> None:
    index = await FailingIndex.open(database)
    events = [*beginning("T", "a", "b"), *done("T", "a", size=5000)]
    await append(log, *events)
    async with projecting(log, index):
        await until(lambda: is_as(index, *events))
        events += done("T", "b")  # Read but not saved.
        await append(log, *events[-2:])
        await is_read(log, index, "after b")
        index.away = True
        events.append(end("T"))
        await append(log, events[-1])
        await until(lambda: is_as(index, *events))


async def test_what_is_not_saved_is_so_many_records_behind_at_most(
    log: Log, index: TurnIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector_module, "_MAX_UNSAVED_RECORDS", 5)
    events = [*beginning("T", "a", "b"), *done("T", "a", size=5000), *done("T", "b")]
    async with projecting(log, index):
        await append(log, *events[:4])
        await until(lambda: is_as(index, *events[:4]))
        await append(log, *events[4:])
        for number in range(5):
            await is_read(log, index, f"other {number}")
        await until(lambda: is_as(index, *events))


async def test_a_claim_that_was_cut_off_leaves_nothing_of_its_own(log: Log, index: TurnIndex) -> None:
    first, second = beginning("T", "a")[0], beginning("T", "a")[0]
    first.header.time.seconds -= 60
    first.turn_requested.personality_digest = "of the pack as it was"
    await index.claim(IndexedTurn(TENANT, folded(first), 0, 0, b"digest"))
    await append(log, second)
    async with projecting(log, index):
        await until(lambda: is_as(index, second))
    [row] = await index.list(TENANT, "", [], None, 10)
    assert row == IndexedTurn(TENANT, folded(second), 0, 0, b"digest", 0)


async def test_a_beginning_that_the_log_took_twice_does_not_begin_a_turn_again(log: Log, index: TurnIndex) -> None:
    events = [*beginning("T", "a"), *done("T", "a"), end("T")]
    await append(log, *events)
    async with projecting(log, index):
        await until(lambda: is_as(index, *events))
        await log.append(envelope.TURNS, [again(events[0])])
        await is_read(log, index, "other")
    assert await is_as(index, *events)


async def is_read(log: Log, index: TurnIndex, other: str) -> None:
    """Waits until the projector has moved on to another turn."""
    event = beginning(other, session=other)[0]
    await append(log, event)
    await until(lambda: is_as(index, event))
