"""The index, rebuilt from the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.unit.gateway.turn_log import TENANT, again, append, beginning, done, end, folded

from agentshell.gateway.rebuild import rebuild
from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from agentshell.log.postgres import PostgresLog
from agentshell.turn import envelope
from kfm.turn.v1.turn_event_pb2 import TurnEvent


async def rows(index: TurnIndex) -> dict[str, IndexedTurn]:
    return {row.turn.turn_id: row for row in await index.list(TENANT, "", [], None, 100)}


def whole(turn_id: str) -> list[TurnEvent]:
    return [*beginning(turn_id, "a"), *done(turn_id, "a"), end(turn_id)]


async def test_an_index_that_was_lost_is_as_the_log_says(log: PostgresLog, index: TurnIndex) -> None:
    await append(log, *whole("over"), *beginning("open", "a"))
    assert await rebuild(log, index) == 2
    assert await rows(index) == {
        "over": IndexedTurn(TENANT, folded(*whole("over")), 0, 0, None, 4),
        "open": IndexedTurn(TENANT, folded(*beginning("open", "a")), 5, 0, None, 6),
    }


async def test_a_row_that_is_wrong_is_replaced_and_one_that_is_further_stays(
    log: PostgresLog, index: TurnIndex
) -> None:
    await append(log, *whole("wrong"), *beginning("further", "a"))
    further = IndexedTurn(TENANT, folded(*whole("further")), 3, 2, b"digest", 9)
    await index.save([IndexedTurn(TENANT, folded(*beginning("wrong")), 0, 0, None, 4), further])
    await rebuild(log, index)
    further.request_digest = None  # Only claims have one.
    assert await rows(index) == {
        "wrong": IndexedTurn(TENANT, folded(*whole("wrong")), 0, 0, None, 4),
        "further": further,
    }


async def test_a_turn_whose_beginning_is_no_longer_retained_stays_as_it_is(log: PostgresLog, index: TurnIndex) -> None:
    old = IndexedTurn(TENANT, folded(*whole("old")), 0, 0, None, 4)
    await index.save([old])
    await append(log, *whole("old")[:4])
    await log.apply_retention(datetime.now(UTC) + timedelta(hours=2))
    await append(log, whole("old")[4], *whole("new"))
    assert await rebuild(log, index) == 1
    assert await rows(index) == {"old": old, "new": IndexedTurn(TENANT, folded(*whole("new")), 5, 0, None, 9)}


async def test_a_beginning_that_the_log_took_twice_does_not_begin_a_turn_again(
    log: PostgresLog, index: TurnIndex
) -> None:
    await append(log, *whole("T"), *(event for number in range(600) for event in beginning(f"other {number}")[:1]))
    await log.append(envelope.TURNS, [again(whole("T")[0])])
    assert await rebuild(log, index) == 601
    row = await index.find(TENANT, "T")
    assert row is not None
    assert row.turn == folded(*whole("T"))
