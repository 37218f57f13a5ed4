"""The usage ledger: summed by day and by the requested groups, each call exactly once, and only the tenant's own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.type import date_pb2
from tests.contract.relay import Relay

from agentshell.db.database import Database
from agentshell.mesh import call
from agentshell.mesh.call import Principal
from agentshell.mesh.errors import AgentShellError
from agentshell.provider.metering import Spent
from agentshell.provider.usage import Usages
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

ANN, BOB, EVE = Principal("acme", "ann"), Principal("acme", "bob"), Principal("evil", "eve")
SESSION, PERSONALITY, MODEL, PRINCIPAL = (
    pb.USAGE_DIMENSION_SESSION,
    pb.USAGE_DIMENSION_PERSONALITY,
    pb.USAGE_DIMENSION_MODEL,
    pb.USAGE_DIMENSION_PRINCIPAL,
)
FAILURE = AgentShellError(error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE, "down")


class Clock:
    """A clock that moves on only when told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 23, 59, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_days(self, days: int) -> None:
        self.now += timedelta(days=days)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def usages(database: Database, clock: Clock) -> AsyncGenerator[Usages]:
    await database.migrate("provider", "agentshell.provider.migrations")
    usages = Usages(database, clock)
    yield usages
    await usages.close()


def spent(model: str = "m1", tokens: int = 10, cost: int | None = 7, failure: AgentShellError | None = None) -> Spent:
    usage = content_pb2.Usage(input_tokens=tokens, output_tokens=2 * tokens)
    if cost is not None:
        usage.cost.CopyFrom(content_pb2.Money(amount_micros=cost, currency_code="USD"))
    return Spent("openai", model, usage, failure)


def purpose(session: str = "s1", personality: str = "guide") -> pb.Purpose:
    return pb.Purpose(session_id=session, personality_id=personality)


async def rows_of(usages: Usages, **request: Any) -> Sequence[pb.UsageRow]:
    """Returns the rows that acme sees."""
    with call.scope(ANN, 10):
        return (await usages.rows("acme", pb.GetUsageRequest(**request))).rows


async def test_everything_that_was_used_is_added_up_and_what_is_unknown_is_counted(usages: Usages) -> None:
    every = content_pb2.Usage(
        input_tokens=100,
        cached_input_tokens=1,
        cache_write_tokens=2,
        image_input_tokens=3,
        audio_input_tokens=4,
        output_tokens=50,
        reasoning_tokens=5,
        audio_output_tokens=6,
        estimated=True,
        cost=content_pb2.Money(amount_micros=9, currency_code="USD"),
    )
    again = content_pb2.Usage(cached_answer_count=1, cost=content_pb2.Money(currency_code="USD"))
    usages.add(ANN, purpose(), [Spent("openai", "m1", every), spent(cost=None, failure=FAILURE)])
    usages.add(BOB, purpose("s2"), [spent("m2", 1000, 2**40), Spent("openai", "m2", again)])

    assert await rows_of(usages) == [
        pb.UsageRow(
            date=date_pb2.Date(year=2026, month=11, day=21),
            call_count=3,
            failed_call_count=1,
            unpriced_call_count=1,
            estimated_call_count=1,
            usage=content_pb2.Usage(
                input_tokens=1110,
                cached_input_tokens=1,
                cache_write_tokens=2,
                image_input_tokens=3,
                audio_input_tokens=4,
                output_tokens=2070,
                reasoning_tokens=5,
                audio_output_tokens=6,
                cached_answer_count=1,
                estimated=True,
                cost=content_pb2.Money(amount_micros=2**40 + 9, currency_code="USD"),
            ),
        )
    ]


async def test_a_cost_that_nobody_knows_is_absent_and_not_zero(usages: Usages) -> None:
    usages.add(ANN, purpose(), [spent(cost=None)])
    usages.add(ANN, purpose("free"), [spent(cost=0)])

    known = {row.session_id: row.usage.HasField("cost") for row in await rows_of(usages, dimensions=[SESSION])}

    assert known == {"s1": False, "free": True}


async def test_rows_are_apart_by_what_is_asked_for_and_limited_to_days_session_and_personality(
    usages: Usages, clock: Clock
) -> None:
    for day in range(3):
        usages.add(ANN, purpose("s1"), [spent("m1", day + 1)])
        usages.add(BOB, purpose("s2", "poet"), [spent("m2", 10 * (day + 1)), spent("m1", 100)])
        clock.pass_days(1)

    async def seen(*dimensions: pb.UsageDimension.ValueType, **request: Any) -> list[tuple[object, ...]]:
        rows = await rows_of(usages, dimensions=dimensions, **request)
        named = [(row.session_id, row.personality_id, row.provider, row.model, row.principal_id) for row in rows]
        return [
            (row.date.day, *filter(None, names), row.usage.input_tokens) for row, names in zip(rows, named, strict=True)
        ]

    first, last = date_pb2.Date(year=2026, month=11, day=22), date_pb2.Date(year=2026, month=11, day=22)
    assert await seen() == [(23, 133), (22, 122), (21, 111)]
    assert await seen(start_date=first) == [(23, 133), (22, 122)]
    assert await seen(SESSION, start_date=first, end_date=last) == [(22, "s1", 2), (22, "s2", 120)]
    assert await seen(end_date=last, session_id="s1") == [(22, 2), (21, 1)]
    assert await seen(MODEL, start_date=first, end_date=last) == [
        (22, "openai", "m1", 102),
        (22, "openai", "m2", 20),
    ]
    assert await seen(PRINCIPAL, PERSONALITY, start_date=first, personality_id="poet") == [
        (23, "poet", "bob", 130),
        (22, "poet", "bob", 120),
    ]


async def test_pages_together_have_each_row_once(usages: Usages, clock: Clock) -> None:
    for day in range(3):
        for session in ("a", "B", "ä", "nul\0", ""):
            usages.add(ANN, purpose(session), [spent("m1", day + 1), spent("m2", 5)])
        clock.pass_days(1)
    whole = await rows_of(usages, dimensions=[SESSION, MODEL])

    pages: list[pb.UsageRow] = []
    token = ""
    with call.scope(ANN, 10):
        while not pages or token:
            request = pb.GetUsageRequest(dimensions=[SESSION, MODEL], page_size=4, page_token=token)
            page = await usages.rows("acme", request)
            assert 1 <= len(page.rows) <= 4
            pages += page.rows
            token = page.next_page_token

    assert pages == list(whole)
    assert len(pages) == 3 * 5 * 2


async def test_a_tenant_sees_nothing_of_another(usages: Usages) -> None:
    usages.add(ANN, purpose(), [spent()])
    usages.add(EVE, purpose(), [spent(tokens=99)])

    (row,) = await rows_of(usages, dimensions=[SESSION, PERSONALITY, MODEL, PRINCIPAL])

    assert (row.principal_id, row.usage.input_tokens, row.call_count) == ("ann", 10, 1)


@pytest.mark.parametrize("day", [date_pb2.Date(year=2026, month=2, day=30), date_pb2.Date(year=2026)])
async def test_what_is_no_day_is_refused(usages: Usages, day: date_pb2.Date) -> None:
    with pytest.raises(AgentShellError) as caught:
        await rows_of(usages, start_date=day)

    assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert [field for field, _ in caught.value.violations] == ["start_date"]


async def test_days_that_begin_after_their_end_are_refused(usages: Usages) -> None:
    first, last = date_pb2.Date(year=2026, month=11, day=23), date_pb2.Date(year=2026, month=11, day=22)
    with pytest.raises(AgentShellError) as caught:
        await rows_of(usages, start_date=first, end_date=last)

    assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert [field for field, _ in caught.value.violations] == ["start_date"]


async def test_usage_is_written_soon_without_anybody_asking(usages: Usages, database: Database) -> None:
    usages.add(ANN, purpose(), [spent()])

    async with database.connection() as connection:
        count = 0
        while not count:  # Bounded by the test's own timeout.
            row = await (await connection.execute("SELECT count(*) FROM provider.usage, pg_sleep(0.05)")).fetchone()
            assert row is not None
            (count,) = row
    assert count == 1


async def test_closing_writes_what_waits(usages: Usages, database: Database) -> None:
    usages.add(ANN, purpose(), [spent()])
    await usages.close()

    (row,) = await rows_of(Usages(database))
    assert row.call_count == 1


async def test_a_batch_whose_answer_was_lost_counts_once(usages: Usages, database_url: str) -> None:
    async with Relay(database_url) as relay:
        database = await Database.open(relay.url, 2)
        cut = Usages(database)
        cut.add(ANN, purpose(), [spent()])
        await cut.flush()
        relay.lose_answers()
        cut.add(ANN, purpose(), [spent()])
        with pytest.raises(AgentShellError) as caught:
            await cut.flush()
        relay.mend()
        while True:  # The pool may have another cut connection.
            with contextlib.suppress(AgentShellError):
                await cut.flush()
                break
        await cut.close()
        await database.close()

    assert caught.value.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE
    assert sum(row.call_count for row in await rows_of(usages)) == 2
