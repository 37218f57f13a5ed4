"""Search by words among many records: the rarest words of a question decide, and the cost of common ones is bounded."""

from __future__ import annotations

import psycopg
import pytest
from tests.contract.memory.caller import USER, Caller

from kfm.memory.v1 import memory_service_pb2 as pb

# More than are ranked; all have the word `tea`.
MANY = 6_000
# Last and longest, so that only its rare word can bring it to the top.
RARE = "tea with saffron from a crocus field in autumn"

_INSERT = """
    INSERT INTO memory.records (tenant_id, namespace, record_id, kind, text)
    SELECT 'acme', %s, 'r' || n, %s, CASE WHEN n < %s THEN 'tea of kind ' || n ELSE %s END
    FROM generate_series(0, %s) AS n"""


@pytest.fixture
async def crowd(acme: Caller, database_url: str) -> Caller:
    """A caller with MANY records without vectors, inserted by SQL for speed."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(_INSERT, [USER, pb.RECORD_KIND_FACT, MANY, RARE, MANY])
        await connection.execute("ANALYZE memory.records")
    return acme


async def test_a_word_of_one_record_finds_it_among_many_that_have_the_others(crowd: Caller) -> None:
    found = await crowd.search("tea saffron", mode=pb.SEARCH_MODE_TEXT, limit=3)
    assert found[0] == f"r{MANY}"
    # Only one has it, and more were asked for: those with just the common word follow.
    assert len(set(found)) == 3


async def test_a_word_that_nobody_wrote_hides_none_that_all_have(crowd: Caller) -> None:
    assert len(await crowd.search("tea cardamom", mode=pb.SEARCH_MODE_TEXT, limit=5)) == 5
