"""Search chooses among matches by kind, score, diversity and age, and can show their neighbours."""

from __future__ import annotations

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.contract.memory.caller import GUIDE, USER, Caller

from kfm.memory.v1 import memory_service_pb2 as pb


async def _hits(caller: Caller, query: str, **more: object) -> list[pb.Hit]:
    response = await caller(pb.SearchRequest(namespaces=[USER], query=query, **more))  # pyright: ignore[reportArgumentType] - any field
    return list(response.hits)


def _ids(hits: list[pb.Hit]) -> list[str]:
    return [hit.record.record_id for hit in hits]


@pytest.mark.parametrize("mode", [pb.SEARCH_MODE_HYBRID, pb.SEARCH_MODE_VECTOR, pb.SEARCH_MODE_TEXT])
async def test_only_records_of_the_kinds_asked_for_are_found(acme: Caller, mode: pb.SearchMode.ValueType) -> None:
    kinds = [pb.RECORD_KIND_FACT, pb.RECORD_KIND_PREFERENCE, pb.RECORD_KIND_SUMMARY]
    records = [pb.Record(record_id=str(kind), kind=kind, text="green tea") for kind in kinds]
    await acme(pb.BatchWriteRequest(namespace=USER, records=records))
    wanted = kinds[1:]
    response = await acme(pb.SearchRequest(namespaces=[USER], query="tea", mode=mode, kinds=wanted))
    assert sorted(hit.record.kind for hit in response.hits) == wanted
    assert (response.candidate_count > 0) == (mode != pb.SEARCH_MODE_TEXT)


@pytest.mark.parametrize(
    ("mode", "score"),
    [
        (pb.SEARCH_MODE_HYBRID, "vector_score"),
        (pb.SEARCH_MODE_VECTOR, "vector_score"),
        (pb.SEARCH_MODE_TEXT, "text_score"),
    ],
)
async def test_a_minimum_score_is_of_the_vector_or_else_of_the_words(
    acme: Caller, mode: pb.SearchMode.ValueType, score: str
) -> None:
    await acme.write(good="green tea", worse="green tea with much else that nobody asked for", none="tax")
    every = await _hits(acme, "green tea", mode=mode)
    least = sorted(getattr(hit, score) for hit in every)[-2]
    assert _ids(await _hits(acme, "green tea", mode=mode, min_score=least - 1e-6)) == ["good", "worse"]
    assert _ids(await _hits(acme, "green tea", mode=mode, min_score=least + 1e-6)) == ["good"]
    assert _ids(await _hits(acme, "green tea", mode=mode, min_score=2)) == []


async def test_diversity_brings_what_is_unlike_the_hits_before_it(acme: Caller) -> None:
    copies = {f"copy{n}": f"Ann drinks green tea in the morning {'.' * n}" for n in range(4)}
    await acme.write(**copies, other="The tea house closes on Monday.")
    question = "when does Ann drink green tea"
    assert _ids(await _hits(acme, question, limit=3)) == ["copy0", "copy1", "copy2"]
    diverse = await _hits(acme, question, limit=3, diversity=0.7)
    assert _ids(diverse)[:2] == ["copy0", "other"]
    assert len(diverse) == 3
    assert _ids(await _hits(acme, question, limit=3, diversity=0.0)) == ["copy0", "copy1", "copy2"]


async def test_recency_prefers_what_was_written_last(acme: Caller, database_url: str) -> None:
    await acme.write(old="green tea with lemon", new="green tea")
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "UPDATE memory.records SET update_time = now() - interval '2 days' WHERE record_id = 'old'"
        )
    question = "green tea with lemon"
    assert _ids(await _hits(acme, question)) == ["old", "new"]
    day = Duration(seconds=86_400)
    new, old = await _hits(acme, question, recency_half_life=day)
    assert _ids([new, old]) == ["new", "old"]
    assert new.recency_score == pytest.approx(1, abs=0.01)
    assert old.recency_score == pytest.approx(0.25, abs=0.01)
    assert old.score == pytest.approx(0.25 / 61, rel=0.05)
    assert _ids(await _hits(acme, question, recency_half_life=Duration(seconds=3600), limit=1)) == ["new"]


async def test_hits_bring_the_chunks_around_them(acme: Caller) -> None:
    sections = "\n\n".join(f"# Part {word}\n\nThis is about {word}." for word in ("ape", "bee", "cat", "dog", "elk"))
    await acme.ingest(("animals.md", sections.encode()), ("other.md", sections.replace("cat", "cow").encode()))
    [hit] = (
        await acme(
            pb.SearchRequest(namespaces=[GUIDE], query="cat", limit=1, mode=pb.SEARCH_MODE_TEXT, neighbour_count=1)
        )
    ).hits
    assert [record.source.title for record in hit.neighbours] == ["Part bee", "Part dog"]
    assert {record.source.uri for record in hit.neighbours} == {"animals.md"}
    [edge] = (
        await acme(
            pb.SearchRequest(namespaces=[GUIDE], query="cow", limit=1, mode=pb.SEARCH_MODE_TEXT, neighbour_count=5)
        )
    ).hits
    assert [record.source.chunk_index for record in edge.neighbours] == [0, 1, 3, 4]
