"""Kept answers: the first stays for 24 hours, and what is older is as if it were not there."""

from __future__ import annotations

import pytest

from agentshell.db.database import Database
from agentshell.provider.answers import Answers
from kfm.provider.v1 import provider_service_pb2 as pb

GENERATION = pb.Generation(provider="local")


@pytest.fixture
async def answers(database: Database) -> Answers:
    answers = Answers(database)
    await answers.open()
    return answers


async def _age(database: Database, request_id: str, interval: str) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE provider.answers SET create_time = now() - %s::interval WHERE request_id = %s",
            (interval, request_id),
        )


async def _count(database: Database) -> int:
    async with database.connection() as connection:
        row = await (await connection.execute("SELECT count(*) FROM provider.answers")).fetchone()
    assert row is not None
    return int(row[0])


async def test_of_two_answers_to_one_request_the_first_stays(answers: Answers) -> None:
    first = await answers.keep("acme", "r", GENERATION, pb.GenerateResponse(model="first"))
    second = await answers.keep("acme", "r", GENERATION, pb.GenerateResponse(model="second"))

    assert (first.model, second.model) == ("first", "first")
    assert await answers.find("acme", "r", GENERATION) == first


async def test_an_answer_older_than_a_day_is_not_there_and_gives_way(answers: Answers, database: Database) -> None:
    await answers.keep("acme", "r", GENERATION, pb.GenerateResponse(model="old"))
    await _age(database, "r", "23 hours 59 minutes")
    assert await answers.find("acme", "r", GENERATION) is not None
    await _age(database, "r", "24 hours 1 minute")
    assert await answers.find("acme", "r", GENERATION) is None

    other = pb.Generation(provider="openai")
    await answers.keep("acme", "r", other, pb.GenerateResponse(model="new"))

    assert await answers.find("acme", "r", other) == pb.GenerateResponse(model="new")


async def test_old_answers_are_swept_as_new_ones_come(answers: Answers, database: Database) -> None:
    for number in range(3):
        await answers.keep("acme", f"old-{number}", GENERATION, pb.GenerateResponse())
        await _age(database, f"old-{number}", "2 days")

    await answers.keep("acme", "new", GENERATION, pb.GenerateResponse())

    assert await _count(database) == 1
