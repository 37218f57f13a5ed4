"""Search finds what matches, in every mode and namespace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.contract.memory.caller import GUIDE, USER, Caller, pages_of, struct

from agentshell.memory import recall, service
from agentshell.memory.stores.store import Store
from agentshell.mesh import call
from kfm.memory.v1 import memory_service_pb2 as pb


async def test_hybrid_search_finds_by_vector_and_by_words_and_says_how_well_each_fits(acme: Caller) -> None:
    await acme.write(
        replay="The log can be replayed from any offset.", misspelt="Retenton of topcs.", cooking="Boil the rice."
    )
    response = await acme(pb.SearchRequest(namespaces=[USER], query="replaying topics and retention", limit=2))
    assert response.embedder == "lexical"
    assert [hit.record.record_id for hit in response.hits] == ["replay", "misspelt"]
    by_both, by_vector = response.hits
    assert by_both.namespace == USER
    assert 0 < by_both.text_score < 1
    assert 0 < by_both.vector_score < 1
    assert 0 < by_vector.vector_score < 1
    assert not by_vector.HasField("text_score")
    assert by_both.score == pytest.approx(0.6 / 61 + 0.4 / 61)
    assert by_vector.score == pytest.approx(0.6 / 62)


async def test_a_mode_looks_its_own_way_alone(acme: Caller) -> None:
    await acme.write(words="The log is replayed.", spelling="Replayxing.")
    by_words = await acme(pb.SearchRequest(namespaces=[USER], query="replaying?", mode=pb.SEARCH_MODE_TEXT))
    assert [(hit.record.record_id, hit.HasField("vector_score")) for hit in by_words.hits] == [("words", False)]
    by_vector = await acme(pb.SearchRequest(namespaces=[USER], query="replaying?", mode=pb.SEARCH_MODE_VECTOR))
    assert {(hit.record.record_id, hit.HasField("text_score")) for hit in by_vector.hits} == {
        ("words", False),
        ("spelling", False),
    }


async def test_any_one_word_of_a_question_is_enough(acme: Caller) -> None:
    await acme.write(tea="Ann drinks tea.", tax="Taxes are due in May.")
    question = "What is it that Ann likes to have for breakfast in her kitchen?"
    assert await acme.search(question, mode=pb.SEARCH_MODE_TEXT) == ["tea"]


async def test_no_text_is_malformed_as_a_query(acme: Caller) -> None:
    await acme.write(tea="Ann's tea \\ & 'x' | !y :* <-> (z)", dots="...")
    for query in (
        "'",
        "''",
        "\\",
        "a\\'b",
        "& | !",
        "tea:*",
        "<->",
        "(((",
        "🍵",
        "the of and",
        "\u202e",
        "'tea' & !",
        "x" * 5000,
    ):
        for mode in pb.SearchMode.values():
            await acme.search(query, mode=mode)
    assert await acme.search("ann's", mode=pb.SEARCH_MODE_TEXT) == ["tea"]
    assert await acme.search("?!") == []


async def test_a_hit_is_the_whole_record_as_get_gives_it(acme: Caller) -> None:
    source = pb.Source(uri="tea.md", title="Tea > Green", chunk_index=3, record_ids=["a", "ä b", ""])
    whole = pb.Record(record_id="whole", text="green tea 🍵", user_id="ann", source=source, kind=pb.RECORD_KIND_SUMMARY)
    whole.metadata.update({"tags": ["x", None, 1.5], "at": {"page": -1}})
    whole.expire_time.FromJsonString("2999-01-02T03:04:05.000006Z")
    bare = pb.Record(record_id="bare", text="tea", metadata=struct())
    await acme(pb.BatchWriteRequest(namespace=USER, records=[whole, bare]))
    hits = (await acme(pb.SearchRequest(namespaces=[USER], query="tea"))).hits
    assert len(hits) == 2
    for hit in hits:
        assert hit.record == (await acme(pb.GetRequest(namespace=USER, record_id=hit.record.record_id))).record
    [found] = [hit.record for hit in hits if hit.record.record_id == "whole"]
    assert (found.source, found.metadata, found.expire_time) == (source, whole.metadata, whole.expire_time)


async def test_a_filter_lets_through_what_contains_all_of_it(acme: Caller) -> None:
    metadata = {"a": struct(lang="en", tags=["x", "y"], at={"page": 1, "line": 2}), "b": struct(lang="de"), "c": None}
    for name, fields in metadata.items():
        await acme(pb.WriteRequest(namespace=USER, record=pb.Record(record_id=name, text="tea", metadata=fields)))
    for wanted, found in [
        (struct(lang="en"), ["a"]),
        (struct(tags=["y"], at={"line": 2}), ["a"]),
        (struct(lang="en", at={"line": 3}), []),
        (struct(), ["a", "b"]),
    ]:
        assert sorted(await acme.search("tea", filter=wanted)) == found
        listed = await acme(pb.ListRequest(namespace=USER, filter=wanted))
        assert [record.record_id for record in listed.records] == found


async def test_a_large_namespace_is_searched_as_well_as_a_small_one(
    acme: Caller, globex: Caller, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_pgvector = store.abilities.name == "pgvector"  # In tests, other stores always query their index.
    words = ["log", "topic", "offset", "lease", "memory", "vector", "turn", "step", "plan", "tool"]
    texts = {f"r{n:03}": " ".join(words[int(digit)] for digit in f"{n:03}") for n in range(300)}
    await acme(
        pb.BatchWriteRequest(
            namespace=USER,
            records=[
                pb.Record(record_id=name, text=text, metadata=struct(rare=name.endswith("77")))
                for name, text in texts.items()
            ],
        )
    )
    await globex.write(**texts)
    # The index returns too few of the records that pass the second filter: all of them are compared.
    for query, wanted, plan in [
        ("memory of a vector", None, pb.SEARCH_PLAN_INDEX),
        ("plan the turn", struct(rare=True), pb.SEARCH_PLAN_EXACT),
    ]:
        search = pb.SearchRequest(namespaces=[USER], query=query, limit=3, mode=pb.SEARCH_MODE_VECTOR, filter=wanted)
        exact = await acme(search)
        with monkeypatch.context() as patch:
            patch.setattr(recall, "EXACT_LEAST", 2)
            patch.setattr(recall, "EXACT_FACTOR", 0.0)
            found = await acme(search)
            assert found.plan == (plan if is_pgvector else pb.SEARCH_PLAN_INDEX)
            assert found.hits == exact.hits
        assert exact.plan == (pb.SEARCH_PLAN_EXACT if is_pgvector else pb.SEARCH_PLAN_INDEX)
        assert len(exact.hits) == 3


async def test_what_passes_a_filter_may_become_many_or_few_between_two_searches(
    acme: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How many records pass is cached for a moment, so the plan may be chosen by an outdated count.
    monkeypatch.setattr(recall, "EXACT_LEAST", 20)
    monkeypatch.setattr(recall, "EXACT_FACTOR", 0.0)
    texts = {f"r{n:03}": f"green tea of {n} leaves" for n in range(200)}
    wanted = struct(kept=True)

    async def write(*names: str, kept: bool) -> None:
        records = [pb.Record(record_id=name, text=texts[name], metadata=struct(kept=kept)) for name in names]
        await acme(pb.BatchWriteRequest(namespace=USER, records=records))

    async def found(question: str) -> list[str]:
        return await acme.search(question, filter=wanted, mode=pb.SEARCH_MODE_VECTOR)

    first, *rest = texts
    await write(first, kept=True)
    assert await found("leaves") == [first]
    await write(*rest, kept=True)
    assert len(await found("tea of leaves")) == 10
    await write(*rest, kept=False)
    assert await found("green leaves") == [first]


async def test_what_was_empty_when_it_was_first_searched_is_found_in_once_another_process_writes(
    acme: Caller, elsewhere: Callable[[str], Caller]
) -> None:
    search = pb.SearchRequest(namespaces=[GUIDE, USER], query="tea", mode=pb.SEARCH_MODE_VECTOR)
    assert not (await acme(search)).hits
    await elsewhere("acme").write(green="green tea")
    assert [hit.record.record_id for hit in (await acme(search)).hits] == ["green"]
    await elsewhere(call.SHARED_TENANT).write(GUIDE, black="black tea")
    assert {hit.record.record_id for hit in (await acme(search)).hits} == {"green", "black"}


async def test_search_looks_into_several_namespaces_at_once(acme: Caller) -> None:
    await acme.write(USER, a="green tea")
    await acme.write("session/s", b="black tea")
    await acme.write("knowledge/k", c="herbal tea")
    response = await acme(pb.SearchRequest(namespaces=[USER, "session/s", USER, "user/none"], query="tea"))
    assert {(hit.namespace, hit.record.record_id) for hit in response.hits} == {(USER, "a"), ("session/s", "b")}


async def test_answers_end_before_a_message_would_be_too_large(acme: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_PAGE_BYTES", 1000)
    await acme.write(**{f"r{n}": "tea " * 100 for n in range(5)}, z="tea " * 400)
    assert len(await acme.search("tea", limit=100)) == 2
    pages = await pages_of(acme, pb.ListRequest(namespace=USER, page_size=500))
    assert [len(page.records) for page in pages] == [2, 2, 1, 1]


HANDBOOK = {
    "turns.md": """
# Turns

A user's message is a turn. It gets a plan, a graph of steps.

## Cancelling

To cancel a turn ends the call under way and kills the tool.

## Limits

A turn that takes more than its time fails.
""",
    "log.md": """
# The log

Records are appended to partitions.

## Retention

Records older than thirty days are deleted.

## Groups

Members of a group share partitions by leases; an old lease is fenced.
""",
    "keys.md": """
# API keys

A key belongs to a tenant.

## Making one

Run `agentshell keys create`.

## Revoking

Delete its entry from the keys file; it is read again at once.
""",
    "memory.md": """
# Memory

Facts and documents are recalled by search.

## Forgetting

What is forgotten, no search finds again.

## Embeddings

The default compares words and spelling.
""",
}
QUESTIONS = {
    "How do I cancel a running turn?": "Turns > Cancelling",
    "what happens when a turn takes too long": "Turns > Limits",
    "How long are records kept before they are deleted?": "The log > Retention",
    "how do members of a consumer group share partitons": "The log > Groups",
    "creating an API key": "API keys > Making one",
    "revoke a key": "API keys > Revoking",
    "Can something forgotten be found again?": "Memory > Forgetting",
    "which embeding is the default": "Memory > Embeddings",
}


async def test_questions_find_their_passage_among_the_first(acme: Caller) -> None:
    await acme.ingest(*((uri, content.encode()) for uri, content in HANDBOOK.items()))
    for question, title in QUESTIONS.items():
        hits = (await acme(pb.SearchRequest(namespaces=[GUIDE], query=question, limit=2))).hits
        assert title in [hit.record.source.title for hit in hits], question
