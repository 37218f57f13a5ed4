"""Search finds the same whichever way vectors are compared: by a cached plan of either index, or by a new one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from psycopg.types.json import Jsonb

from agentshell.db.database import Database
from agentshell.memory.stores import namespaces
from agentshell.memory.stores.change import change
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.store import Embedding, Entry, Place, Space
from kfm.memory.v1 import memory_service_pb2 as pb

HOME, OTHER = Place("acme", "knowledge/home"), Place("acme", "knowledge/other")
EVEN, ODD = pb.RECORD_KIND_FACT, pb.RECORD_KIND_MESSAGE
RECORDS = 60
BY_PLACE, BY_METADATA, ANEW = 1, 2, 3


def _vector(angle: float) -> Embedding:
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float16)


def _entry(number: int) -> Entry:
    """Returns an entry: the higher its number, the farther from angle 0; in the other slot, the nearer."""
    record = pb.Record(record_id=f"r{number:02}", kind=EVEN if number % 2 == 0 else ODD, text=f"Number {number}")
    record.metadata.update({"third": number % 3 == 0})
    if number == 0:
        record.expire_time.FromSeconds(1)
    return Entry(record, _vector(number / RECORDS), _vector((RECORDS - number) / RECORDS))


async def _fill(database: Database, store: PgvectorStore, place: Place) -> None:
    async with change(database, place) as connection:
        await namespaces.begin(connection, place, Space("flat", 2))
        await store.replace_document(connection, place, "all", {}, [_entry(number) for number in range(RECORDS)])


@pytest.mark.parametrize("way", [BY_PLACE, BY_METADATA, ANEW])
@pytest.mark.parametrize(("slot", "expected"), [(1, [6, 12, 18, 24]), (2, [54, 48, 42, 36])])
async def test_each_way_of_comparing_finds_the_same(
    database: Database, way: int, slot: int, expected: Sequence[int]
) -> None:
    store = await PgvectorStore.open(database)
    await _fill(database, store, HOME)
    await _fill(database, store, OTHER)
    compared = "SELECT * FROM memory.compared(%s, %s::text::halfvec, %s, %s, %s::smallint[], 4, %s, %s)"
    parameters = [[HOME.key], "[1, 0]", slot, Jsonb({"third": True}), [EVEN], RECORDS, way]
    async with database.connection() as connection:
        [(passed, places, record_ids, distances)] = await (await connection.execute(compared, parameters)).fetchall()
    assert (passed, places) == (9, [HOME.key] * 4)
    assert record_ids == [f"r{number:02}" for number in expected]
    assert distances == sorted(distances)
