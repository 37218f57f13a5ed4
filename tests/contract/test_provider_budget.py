"""Budgets hold to the micro-USD: under concurrency, across processes, and through lost answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.contract.relay import Relay

from agentshell.db.database import Database
from agentshell.mesh.call import Principal
from agentshell.mesh.config import ProviderConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.provider import spending
from agentshell.provider.budget import Budgets, Reservation
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

ANN, BOB, EVE = Principal("acme", "ann"), Principal("acme", "bob"), Principal("evil", "eve")
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY = "day/2026-11-30/tenant/cost/acme"
_WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
NO_PURPOSE = pb.Purpose()
TURN = pb.Purpose(turn_id="t1", max_turn_tokens=100)


@pytest.fixture(autouse=True)
async def schema(database: Database) -> None:
    await database.migrate("provider", "agentshell.provider.migrations")


@asynccontextmanager
async def opened(database: Database, *budgets: Mapping[str, Any], now: datetime = NOW) -> AsyncGenerator[Budgets]:
    subject = Budgets(ProviderConfig.model_validate({"budgets": budgets}), database, lambda: now)
    await subject.open()
    yield subject
    await subject.close()


async def refusal(reserving: Any) -> AgentShellError:
    with pytest.raises(AgentShellError) as caught:
        await reserving
    return caught.value


async def spent(database: Database) -> dict[str, int]:
    async with database.connection() as connection:
        rows = await connection.execute("SELECT name, spent FROM provider.spending")
        return {str(name): int(amount) async for name, amount in rows}


@asynccontextmanager
async def locked(database: Database) -> AsyncGenerator[Callable[[int], Awaitable[None]]]:
    """Locks all accounts during the block; yields a function that waits until `writers` writers wait for them."""
    async with database.transaction() as connection, database.connection() as watcher:

        async def wait_for(writers: int) -> None:
            while len(await (await watcher.execute(_WAITING)).fetchall()) < writers:
                pass

        await connection.execute("SELECT FROM provider.spending FOR UPDATE")
        yield wait_for


async def reserve(
    budgets: Budgets, principal: Principal, purpose: pb.Purpose, most_tokens: int, most_cost_micros: int | None
) -> Reservation:
    """Reserves what a principal's call may use."""
    return await budgets.reserve(budgets.limits(principal, purpose), most_tokens, most_cost_micros)


async def granted(outcomes: Iterable[asyncio.Task[Reservation]]) -> list[bool]:
    """Waits for calls and returns which were granted; the others must be refused for their budget."""
    found: list[bool] = []
    for outcome in outcomes:
        (result,) = await asyncio.gather(outcome, return_exceptions=True)
        refused = isinstance(result, AgentShellError) and result.reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        assert refused or isinstance(result, Reservation)
        found.append(not refused)
    return found


# --- exactness


@pytest.mark.parametrize("seed", range(3))
async def test_200_calls_at_once_in_two_processes_never_exceed_the_cap(
    seed: int, database: Database, database_url: str
) -> None:
    draw = random.Random(seed)  # noqa: S311 - test amounts
    asked = [draw.randint(1, 200_000) for _ in range(200)]
    cap = {"cost_usd": 5, "period": "day"}
    async with AsyncExitStack() as stack, database.connection() as connection:
        # Postgres itself checks: a single micro-USD above the cap fails the statement.
        await connection.execute("ALTER TABLE provider.spending ADD CHECK (name NOT LIKE 'day/%' OR spent <= 5000000)")
        processes = [await stack.enter_async_context(opened(database, cap, {"tokens": 10**9}))]
        other = await Database.open(database_url, 2)
        stack.push_async_callback(other.close)
        processes.append(await stack.enter_async_context(opened(other, {"tokens": 10**9}, cap)))

        async def call(process: Budgets, most: int) -> int:
            reservation = await reserve(process, ANN, NO_PURPOSE, 10, most)
            await asyncio.sleep(0)
            used = draw.randint(0, most)
            await process.settle(reservation, 3, used)
            return used

        calls = [asyncio.create_task(call(draw.choice(processes), most)) for most in asked]
        used = await asyncio.gather(*calls, return_exceptions=True)
        fitted = [amount for amount in used if isinstance(amount, int)]
        refused = [error for error in used if not isinstance(error, int)]

        assert {getattr(error, "reason", error) for error in refused} == {error_pb2.ERROR_REASON_BUDGET_EXHAUSTED}
        assert (await spent(database))[DAY] == sum(fitted) <= 5_000_000
        assert fitted


async def test_as_many_calls_as_fit_are_let_through_and_not_one_more(database: Database, database_url: str) -> None:
    other = await Database.open(database_url, 2)
    async with opened(database, {"cost_usd": 0.05}) as one, opened(other, {"cost_usd": 0.05}) as two:
        await reserve(one, ANN, NO_PURPOSE, 1, 0)
        async with locked(database) as wait_for:  # Both would see the accounts as they are now.
            calls = [asyncio.create_task(reserve(b, ANN, NO_PURPOSE, 1, 500)) for _ in range(100) for b in (one, two)]
            await wait_for(2)
        assert sum(await granted(calls)) == 100

        assert await spent(database) == {DAY: 50_000}
    await other.close()


async def test_a_call_is_reserved_of_all_its_budgets_or_of_none(database: Database) -> None:
    budgets = [
        {"cost_usd": 1},
        {"cost_usd": 1, "period": "month", "per": "principal"},
        {"tokens": 50, "per": "session"},
    ]
    purpose = pb.Purpose(session_id="s1", turn_id="t1", max_turn_tokens=1000)
    async with opened(database, *budgets) as subject:
        await reserve(subject, ANN, purpose, 30, 100)
        error = await refusal(reserve(subject, ANN, purpose, 21, 100))

    assert error.metadata["budget"] == "session/day"
    assert await spent(database) == {
        DAY: 100,
        "month/2026-11-01/principal/cost/ann": 100,
        "day/2026-11-30/session/tokens/s1": 30,
        "turn/t1": 30,
    }


async def test_concurrent_calls_of_a_process_travel_together(database: Database) -> None:
    async with opened(database, {"cost_usd": 1}) as subject, database.connection() as connection:
        reservations = await asyncio.gather(*(reserve(subject, ANN, NO_PURPOSE, 1, 1) for _ in range(100)))
        await asyncio.gather(*(subject.settle(reservation, 1, 0) for reservation in reservations))
        row = await (await connection.execute("SELECT batch FROM provider.writers")).fetchone()

    assert row is not None
    assert row[0] <= 4
    assert await spent(database) == {DAY: 0}


# --- reserving and settling


async def test_who_calls_alone_waits_for_nobody(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "GATHERING_SECONDS", 3600.0)
    async with opened(database, {"cost_usd": 1, "period": "day"}) as budgets:
        for _ in range(3):
            await budgets.settle(await reserve(budgets, ANN, NO_PURPOSE, 10, 100), 3, 40)
    assert await spent(database) == {DAY: 120}


async def test_what_is_reserved_is_spent_until_it_is_settled_and_a_crash_frees_nothing(database: Database) -> None:
    async with opened(database, {"cost_usd": 0.001}) as crashed:
        await reserve(crashed, ANN, NO_PURPOSE, 1, 600)
    async with opened(database, {"cost_usd": 0.001}) as subject:
        await refusal(reserve(subject, ANN, NO_PURPOSE, 1, 401))
        reservation = await reserve(subject, ANN, NO_PURPOSE, 1, 400)
        await subject.settle(reservation, 1, 150)
        await subject.settle(reservation, 1, 0)  # Settling again changes nothing.

        assert await spent(database) == {DAY: 750}
        await reserve(subject, ANN, NO_PURPOSE, 1, 250)


async def test_a_cost_that_is_unknown_in_the_end_stays_as_it_was_reserved(database: Database) -> None:
    async with opened(database, {"cost_usd": 1, "tokens": 100}) as subject:
        await subject.settle(await reserve(subject, ANN, NO_PURPOSE, 60, 700), 20, None)

    assert await spent(database) == {DAY: 700, "day/2026-11-30/tenant/tokens/acme": 20}


async def test_a_call_that_used_more_than_was_reserved_counts_whole(database: Database) -> None:
    async with opened(database, {"cost_usd": 0.001}) as subject:
        await subject.settle(await reserve(subject, ANN, NO_PURPOSE, 1, 900), 1, 1500)
        error = await refusal(reserve(subject, ANN, NO_PURPOSE, 1, 1))

    assert error.metadata["spent"] == "0.001500 USD"


async def test_settling_never_makes_an_account_negative(database: Database) -> None:
    async with opened(database, {"cost_usd": 1}) as subject, database.connection() as connection:
        reservation = await reserve(subject, ANN, NO_PURPOSE, 1, 700)
        await connection.execute("UPDATE provider.spending SET spent = 5")
        await subject.settle(reservation, 1, 100)

    assert await spent(database) == {DAY: 0}


async def test_a_call_settles_in_the_period_that_it_began_in(database: Database) -> None:
    clock = [NOW]
    config = ProviderConfig.model_validate({"budgets": [{"cost_usd": 1}, {"cost_usd": 1, "period": "month"}]})
    subject = Budgets(config, database, lambda: clock[0])
    await subject.open()
    reservation = await reserve(subject, ANN, NO_PURPOSE, 1, 900_000)
    clock[0] += timedelta(days=1)
    await reserve(subject, ANN, NO_PURPOSE, 1, 900_000)
    await subject.settle(reservation, 1, 5)
    await subject.close()

    assert await spent(database) == {
        DAY: 5,
        "month/2026-11-01/tenant/cost/acme": 5,
        "day/2026-12-01/tenant/cost/acme": 900_000,
        "month/2026-12-01/tenant/cost/acme": 900_000,
    }


# --- whose budget it is


@pytest.mark.parametrize(
    ("budget", "others"),
    [
        ({"per": "tenant"}, [(EVE, "s1")]),
        ({"per": "principal"}, [(EVE, "s1"), (BOB, "s1")]),
        ({"per": "session"}, [(EVE, "s1"), (ANN, "s2"), (ANN, "s1\0"), (ANN, "")]),
        ({"per": "tenant", "tenant": "acme"}, [(EVE, "s1")]),
    ],
)
async def test_each_has_its_own_budget(
    budget: Mapping[str, Any], others: list[tuple[Principal, str]], database: Database
) -> None:
    async with opened(database, {"cost_usd": 0.001, **budget}) as subject:
        await reserve(subject, ANN, pb.Purpose(session_id="s1"), 1, 1000)
        for principal, session_id in others:
            await reserve(subject, principal, pb.Purpose(session_id=session_id), 1, 1000)

        error = await refusal(reserve(subject, ANN, pb.Purpose(session_id="s1"), 1, 1))
    assert error.reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED


async def test_of_two_budgets_alike_the_smaller_holds(database: Database) -> None:
    for budgets in ([{"cost_usd": 1}, {"cost_usd": 0.5, "tenant": "acme"}], [{"cost_usd": 0.5}, {"cost_usd": 1}]):
        async with opened(database, *budgets) as subject:
            error = await refusal(reserve(subject, ANN, NO_PURPOSE, 1, 500_001))
        assert error.metadata["limit"] == "0.500000 USD"


async def test_where_nothing_applies_nobody_is_asked(database_url: str) -> None:
    database = await Database.open(database_url, 1)
    await database.close()
    async with opened(database, {"cost_usd": 1, "tenant": "evil"}, {"tokens": 1, "per": "session"}) as subject:
        assert not subject.limits(ANN, NO_PURPOSE)
        assert [len(subject.limits(EVE, NO_PURPOSE)), len(subject.limits(ANN, TURN))] == [1, 1]
        await subject.settle(await reserve(subject, ANN, NO_PURPOSE, 10, None), 10, None)


# --- refusals


async def test_a_refusal_names_the_budget_what_is_left_and_when_it_begins_anew(database: Database) -> None:
    async with opened(database, {"cost_usd": 12.5, "period": "month"}) as subject:
        await reserve(subject, ANN, NO_PURPOSE, 1, 12_000_000)
        error = await refusal(reserve(subject, ANN, NO_PURPOSE, 1, 500_001))

    assert error.reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED
    assert error.metadata == {
        "budget": "tenant/month",
        "limit": "12.500000 USD",
        "spent": "12.000000 USD",
        "asked": "0.500001 USD",
        "reset_time": "2026-12-01T00:00:00Z",
    }
    assert error.quotas == (("tenant:acme", "12.000000 USD of 12.500000 USD per month are spent or reserved"),)
    assert error.retry_delay is None


async def test_a_turn_has_a_limit_of_its_own(database: Database) -> None:
    async with opened(database) as subject:
        await subject.settle(await reserve(subject, ANN, TURN, 90, None), 60, None)
        error = await refusal(reserve(subject, ANN, TURN, 41, None))
        await reserve(subject, EVE, TURN, 100, None)  # Another tenant's turn.
        await reserve(subject, ANN, TURN, 40, None)

    assert error.reason == error_pb2.ERROR_REASON_TOKEN_LIMIT
    assert error.metadata == {"limit": "100 tokens", "spent": "60 tokens", "asked": "41 tokens", "left_tokens": "40"}
    assert error.quotas == (("turn:t1", "60 tokens of 100 tokens are used or reserved"),)
    assert error.retry_delay is None


async def test_a_call_of_unknown_cost_is_refused_where_money_is_bounded(database: Database) -> None:
    async with opened(database, {"tokens": 100}) as subject:
        await reserve(subject, ANN, NO_PURPOSE, 1, None)
    async with opened(database, {"tokens": 100}, {"cost_usd": 1}) as subject:
        error = await refusal(reserve(subject, ANN, NO_PURPOSE, 1, None))

    assert error.reason == error_pb2.ERROR_REASON_PRICE_UNKNOWN
    assert "provider.prices_file" in error.message
    assert await spent(database) == {"day/2026-11-30/tenant/tokens/acme": 1}


# --- Postgres away, callers gone


async def test_without_postgres_calls_are_refused_and_afterwards_the_books_are_right(
    database: Database, database_url: str
) -> None:
    async with Relay(database_url) as relay:
        cut = await Database.open(relay.url, 2)
        async with cut.connection():  # Otherwise the lost answer may be that of the pool's first connection.
            pass
        async with opened(cut, {"cost_usd": 1}) as subject:
            before = await reserve(subject, ANN, NO_PURPOSE, 1, 300)
            relay.lose_answers()
            lost = await refusal(reserve(subject, ANN, NO_PURPOSE, 1, 40))  # Reserved, but the answer is lost.
            refused = await refusal(reserve(subject, ANN, NO_PURPOSE, 1, 5))
            await subject.settle(before, 1, 200)
            assert await spent(database) == {DAY: 340}
            relay.mend()
            await reserve(subject, ANN, NO_PURPOSE, 1, 1000)
        await cut.close()

    assert {lost.reason, refused.reason} == {error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE}
    assert await spent(database) == {DAY: 1200}


async def test_what_a_crash_of_postgres_takes_back_is_written_again_before_anything_is_decided(
    database: Database,
) -> None:
    async with opened(database, {"cost_usd": 1}) as subject, database.connection() as connection:
        await reserve(subject, ANN, NO_PURPOSE, 1, 300_000)
        await subject.settle(await reserve(subject, ANN, NO_PURPOSE, 1, 400_000), 1, 100_000)
        for taken_back in ("spending SET spent = 300000", "writers SET batch = 1"):
            await connection.execute(f"UPDATE provider.{taken_back}")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE '%provider.spend(%' AND pid <> pg_backend_pid()"
        )
        unavailable = error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE
        while (error := await refusal(reserve(subject, ANN, NO_PURPOSE, 1, 600_001))).reason == unavailable:
            pass
        await reserve(subject, ANN, NO_PURPOSE, 1, 600_000)

    assert error.reason == error_pb2.ERROR_REASON_BUDGET_EXHAUSTED
    assert await spent(database) == {DAY: 1_000_000}


async def test_what_postgres_refuses_is_not_granted_and_holds_up_nobody_after_it(database: Database) -> None:
    async with opened(database, {"cost_usd": 1}) as subject, database.connection() as connection:
        await connection.execute("ALTER TABLE provider.spending ADD CONSTRAINT odd CHECK (spent <> 13)")
        error = await refusal(reserve(subject, ANN, NO_PURPOSE, 1, 13))
        await reserve(subject, ANN, NO_PURPOSE, 1, 12)

    assert error.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE
    assert await spent(database) == {DAY: 12}


async def test_a_caller_that_gives_up_has_nothing_reserved(database: Database) -> None:
    async with opened(database, {"cost_usd": 1}) as subject:
        await reserve(subject, ANN, NO_PURPOSE, 1, 1)
        async with locked(database) as wait_for:
            calls = [asyncio.create_task(reserve(subject, ANN, NO_PURPOSE, 1, 500)) for _ in range(5)]
            await wait_for(1)
            for call in calls[:4]:
                call.cancel()
        await calls[4]
        await asyncio.wait(calls)

    assert await spent(database) == {DAY: 501}


async def test_a_caller_that_gives_up_as_its_answer_comes_has_nothing_reserved(database: Database) -> None:
    async with opened(database, {"cost_usd": 1}) as subject:

        async def cancel_the_other() -> None:
            await reserve(subject, ANN, NO_PURPOSE, 1, 1)
            other.cancel()  # The answer of the same batch is there, but not delivered yet.

        one = asyncio.create_task(cancel_the_other())
        other = asyncio.create_task(reserve(subject, ANN, NO_PURPOSE, 1, 500))
        await asyncio.wait([one, other])
        assert other.cancelled()

    assert await spent(database) == {DAY: 1}


async def test_old_accounts_go_a_few_at_a_time(database: Database) -> None:
    async with opened(database, {"cost_usd": 1}) as subject, database.connection() as connection:
        await connection.execute(
            "INSERT INTO provider.spending"
            " SELECT 'acme', 'day/old/' || i, 7, current_date - i FROM generate_series(1, 5) AS i"
        )
        await reserve(subject, ANN, NO_PURPOSE, 1, 1)
        await reserve(subject, ANN, NO_PURPOSE, 1, 1)

    assert await spent(database) == {DAY: 2, "day/old/1": 7, "day/old/2": 7, "day/old/3": 7}
