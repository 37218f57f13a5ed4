"""Repeats of a request, over two processes and their deaths: two `Answers` over real Postgres, as two processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from agentshell.db.database import Database
from agentshell.mesh.errors import AgentShellError
from agentshell.provider.answers import Answers
from agentshell.provider.response_cache import ResponseCache
from agentshell.provider.runs import Request
from kfm.content.v1.content_pb2 import Money, Usage
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

REQUEST = Request("acme", "turn-1/step-1", b"digest")
ANSWER = pb.GenerateResponse(model="m", usage=Usage(input_tokens=7, cost=Money(amount_micros=9, currency_code="USD")))
DAY = timedelta(days=1)


@pytest.fixture
async def first(database: Database) -> AsyncIterator[Answers]:
    answers = Answers(database)
    await database.migrate("provider", "agentshell.provider.migrations")
    yield answers
    await answers.close()


@pytest.fixture
async def second(database: Database, first: Answers) -> AsyncIterator[Answers]:
    answers = Answers(database)
    yield answers
    await answers.close()


async def test_a_repeat_elsewhere_waits_for_the_first_answer(first: Answers, second: Answers) -> None:
    assert await first.claim(REQUEST) is None
    waiting = asyncio.create_task(second.claim(REQUEST))
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()

    assert await first.keep(REQUEST, ANSWER) == ANSWER

    assert await asyncio.wait_for(waiting, 10) == ANSWER
    assert await first.claim(REQUEST) == ANSWER


async def test_what_is_kept_while_its_caller_goes_on_is_the_answer_of_a_repeat(first: Answers, second: Answers) -> None:
    assert await first.claim(REQUEST) is None
    waiting = asyncio.create_task(second.claim(REQUEST))

    await first.keep_meanwhile(REQUEST, ANSWER)

    assert await first.claim(REQUEST) == ANSWER  # Its own claim does not let it answer again.
    assert await asyncio.wait_for(waiting, 10) == ANSWER


async def test_answers_are_kept_by_the_time_that_the_process_has_closed(first: Answers, second: Answers) -> None:
    requests = [Request("acme", f"turn-{number}/step-1", b"digest") for number in range(8)]
    for request in requests:
        await first.keep_meanwhile(request, ANSWER)
    await first.close()
    assert [await second.claim(request) for request in requests] == [ANSWER] * len(requests)


async def test_what_cannot_be_kept_is_the_next_ones_to_make(
    first: Answers, second: Answers, database: Database
) -> None:
    assert await first.claim(REQUEST) is None
    async with database.connection() as connection:
        await connection.execute("ALTER TABLE provider.answers ADD CONSTRAINT none CHECK (request_id = '')")
    await first.keep_meanwhile(REQUEST, ANSWER)
    assert await asyncio.wait_for(second.claim(REQUEST), 10) is None


async def test_a_claim_that_is_given_up_is_the_next_ones(first: Answers, second: Answers) -> None:
    assert await first.claim(REQUEST) is None
    waiting = asyncio.create_task(second.claim(REQUEST))
    await first.release(REQUEST)
    assert await asyncio.wait_for(waiting, 10) is None


async def test_the_claim_of_a_process_that_is_gone_is_the_next_ones(first: Answers, second: Answers) -> None:
    assert await first.claim(REQUEST) is None
    waiting = asyncio.create_task(second.claim(REQUEST))
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()
    await first.close()  # As the end of the process closes its connection.
    assert await asyncio.wait_for(waiting, 10) is None


async def test_a_process_whose_connection_was_cut_claims_again(
    first: Answers, second: Answers, database: Database
) -> None:
    assert await first.claim(REQUEST) is None
    async with database.connection() as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks "
            "WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND pid <> pg_backend_pid()"
        )
    assert await second.claim(REQUEST) is None
    other = Request("acme", "another", b"digest")
    assert await first.claim(other) is None
    waiting = asyncio.create_task(second.claim(other))
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()  # The first holds its lock again.
    await first.release(other)
    assert await asyncio.wait_for(waiting, 10) is None


async def test_a_request_id_is_one_requests_and_one_tenants(first: Answers, second: Answers) -> None:
    assert await first.claim(REQUEST) is None
    another = Request("acme", REQUEST.request_id, b"another")
    for _ in ("under way", "answered"):
        with pytest.raises(AgentShellError) as caught:
            await second.claim(another)
        assert caught.value.reason == error_pb2.ERROR_REASON_REQUEST_ID_REUSED
        await first.keep(REQUEST, ANSWER)
    assert await second.claim(Request("umbrella", REQUEST.request_id, b"another")) is None


async def test_an_answer_is_kept_for_a_day(first: Answers, database: Database) -> None:
    assert await first.claim(REQUEST) is None
    await first.keep(REQUEST, ANSWER)
    async with database.connection() as connection:
        await connection.execute("UPDATE provider.answers SET create_time = now() - interval '25 hours'")
        await connection.execute("UPDATE provider.claim SET create_time = now() - interval '25 hours'")
    another = Request("acme", REQUEST.request_id, b"another")
    assert await first.claim(another) is None
    assert await first.keep(another, pb.GenerateResponse(model="n")) == pb.GenerateResponse(model="n")


async def test_a_cached_answer_is_given_again_at_no_cost_until_it_is_too_old(
    first: Answers, database: Database
) -> None:
    cache = ResponseCache(database)
    assert await cache.find("acme", b"d", DAY) is None
    await cache.keep("acme", b"d", DAY, ANSWER)

    again = await cache.find("acme", b"d", DAY)

    assert again == pb.GenerateResponse(
        model="m", usage=Usage(cached_answer_count=1, cost=Money(amount_micros=0, currency_code="USD"))
    )
    assert await cache.find("umbrella", b"d", DAY) is None
    assert await cache.find("acme", b"e", DAY) is None
    async with database.connection() as connection:
        await connection.execute("UPDATE provider.cached_answer SET create_time = now() - interval '2 hours'")
    assert await cache.find("acme", b"d", timedelta(hours=1)) is None
    async with database.connection() as connection:
        await connection.execute("UPDATE provider.cached_answer SET expire_time = now()")
    assert await cache.find("acme", b"d", DAY) is None
    await cache.keep("acme", b"f", DAY, ANSWER)
    async with database.connection() as connection:
        row = await (await connection.execute("SELECT count(*) FROM provider.cached_answer")).fetchone()
    assert row == (1,)


async def test_of_two_answers_to_one_request_the_first_stays_and_old_ones_are_swept(
    first: Answers, second: Answers, database: Database
) -> None:
    for number in range(3):
        await first.keep(Request("acme", f"old-{number}", b"digest"), ANSWER)
    async with database.connection() as connection:
        await connection.execute("UPDATE provider.answers SET create_time = now() - interval '2 days'")

    assert await first.keep(REQUEST, ANSWER) == ANSWER
    assert await second.keep(REQUEST, pb.GenerateResponse(model="second")) == ANSWER

    async with database.connection() as connection:
        row = await (await connection.execute("SELECT count(*) FROM provider.answers")).fetchone()
    assert row == (1,)
