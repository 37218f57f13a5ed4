"""Documents become chunks, and only changed chunks are rewritten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.contract.memory.caller import GUIDE, TIMEOUT_SECONDS, Caller
from tests.documents import docx, paragraph, pdf

from agentshell.memory import ingestion
from agentshell.memory.documents import reading
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb


async def test_a_document_becomes_chunks_with_their_place_in_it(acme: Caller) -> None:
    content = "\ufeff# Tea\n\nHot.\n\n## Green\n\nFrom “China”.\n"
    response = await acme.ingest(("tea.md", content.encode()))
    assert response == pb.IngestResponse(document_count=1, written_chunk_count=2)
    chunks = (await acme(pb.ListRequest(namespace=GUIDE))).records
    assert sorted((chunk.source.chunk_index, chunk.source.title, chunk.text) for chunk in chunks) == [
        (0, "Tea", "Hot."),
        (1, "Tea > Green", "From “China”."),
    ]
    assert {(chunk.kind, chunk.source.uri, chunk.version) for chunk in chunks} == {(pb.RECORD_KIND_CHUNK, "tea.md", 1)}
    assert (await acme(pb.SearchRequest(namespaces=[GUIDE], query="green tea"))).hits[0].record.text == "From “China”."


async def test_a_document_that_has_not_changed_is_left(acme: Caller) -> None:
    one, two, other = ("one.md", b"# A\n\na\n\n# B\n\nb"), ("two.md", b"two"), ("two.md", b"other")
    await acme.ingest(one, two)
    before = (await acme(pb.ListRequest(namespace=GUIDE))).records
    assert await acme.ingest(one, two) == pb.IngestResponse(document_count=2, unchanged_document_count=2)
    assert (await acme(pb.ListRequest(namespace=GUIDE))).records == before
    assert await acme.ingest(one, other) == pb.IngestResponse(
        document_count=2, unchanged_document_count=1, written_chunk_count=1, forgotten_chunk_count=1
    )
    after = (await acme(pb.ListRequest(namespace=GUIDE))).records
    assert sorted(record.text for record in after) == ["a", "b", "other"]


async def test_of_a_changed_document_only_what_changed_is_replaced_and_the_rest_moves(acme: Caller) -> None:
    await acme.ingest(("a.md", b"# A\n\nsame\n\n# B\n\nold\n\n# C\n\ntwice\n\n# C\n\ntwice"))
    before = {record.record_id: record for record in (await acme(pb.ListRequest(namespace=GUIDE))).records}
    changed = b"# New\n\nfirst\n\n# A\n\nsame\n\n# C\n\ntwice\n\n# C\n\ntwice\n\n# C\n\ntwice"
    assert await acme.ingest(("a.md", changed)) == pb.IngestResponse(
        document_count=1, written_chunk_count=2, forgotten_chunk_count=1
    )
    after = (await acme(pb.ListRequest(namespace=GUIDE))).records
    assert sorted((record.source.chunk_index, record.text) for record in after) == [
        (0, "first"),
        (1, "same"),
        (2, "twice"),
        (3, "twice"),
        (4, "twice"),
    ]
    kept = [record for record in after if record.record_id in before]
    assert len(kept) == 3
    for record in kept:
        before[record.record_id].source.chunk_index = record.source.chunk_index
        assert record == before[record.record_id]


async def test_chunks_that_were_touched_are_ingested_anew(acme: Caller) -> None:
    document = ("a.md", b"# A\n\na\n\n# B\n\nb")
    await acme.ingest(document)
    first, second = await acme.ids()
    await acme(pb.ForgetRequest(namespace=GUIDE, records=pb.RecordIds(record_ids=[first])))
    assert (await acme.ingest(document)).written_chunk_count == 1
    await acme.write(GUIDE, **{second: "written over, and of no document"})
    assert (await acme.ingest(document)).written_chunk_count == 1
    assert (await acme.ingest(document)).unchanged_document_count == 1
    assert await acme.ids() == [first, second]


async def test_each_document_is_told_of_as_soon_as_it_is_in(acme: Caller) -> None:
    await acme.ingest(("same.md", b"same"), ("changed.md", b"# A\n\na\n\n# B\n\nb"))
    goes_on = asyncio.Event()

    async def parts() -> AsyncIterator[pb.IngestWithProgressRequest]:
        def part(**what: Any) -> pb.IngestWithProgressRequest:
            return pb.IngestWithProgressRequest(part=pb.IngestRequest(**what))

        yield part(start=pb.IngestStart(namespace=GUIDE))
        for uri, content in [("same.md", b"same"), ("changed.md", b"# A\n\na\n\n# C\n\nc"), ("new.md", b"new")]:
            yield part(document=pb.IngestDocument(source_uri=uri, media_type="text/markdown"))
            yield part(content=content)
            if uri == "changed.md":
                await goes_on.wait()

    metadata = (("authorization", f"Bearer {acme.credential}"),)
    call = acme.stub.IngestWithProgress(parts(), metadata=metadata, timeout=TIMEOUT_SECONDS)
    try:
        told: list[pb.IngestWithProgressResponse] = []
        async for progress in call:
            told.append(progress)
            goes_on.set()  # The stream is still open once the first is stored.
    finally:
        call.cancel()
    done = pb.IngestedDocument
    assert told == [
        *(
            pb.IngestWithProgressResponse(document=document)
            for document in (
                done(source_uri="same.md", unchanged=True, unchanged_chunk_count=1),
                done(source_uri="changed.md", written_chunk_count=1, unchanged_chunk_count=1, forgotten_chunk_count=1),
                done(source_uri="new.md", written_chunk_count=1),
            )
        ),
        pb.IngestWithProgressResponse(
            summary=pb.IngestResponse(
                document_count=3, unchanged_document_count=1, written_chunk_count=2, forgotten_chunk_count=1
            )
        ),
    ]


async def test_progress_is_told_to_nobody_without_a_credential(acme: Caller) -> None:
    call = acme.stub.IngestWithProgress(iter([pb.IngestWithProgressRequest()]), timeout=TIMEOUT_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await anext(aiter(call))
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_documents_of_every_format_are_found_and_cited(acme: Caller) -> None:
    word = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    documents = [
        ("a.txt", "text/plain", b"oolong one"),
        ("a.html", "text/html", b"<h1>Tea</h1>oolong two"),
        ("a.pdf", "application/pdf", pdf(["oolong three"])),
        ("a.docx", word, docx(paragraph("Tea", "Titre1") + paragraph("oolong four"))),
        ("a.csv", "text/csv", b"kind\noolong five\n"),
        ("a.json", "application/json", b'{"kinds": ["oolong six"]}'),
        ("a.py", "text/x-python", b"def oolong():\n    return 7\n"),
    ]
    parts = [pb.IngestRequest(start=pb.IngestStart(namespace=GUIDE))]
    for uri, media_type, content in documents:
        parts.append(pb.IngestRequest(document=pb.IngestDocument(source_uri=uri, media_type=media_type)))
        parts.append(pb.IngestRequest(content=content))
    assert (await acme.send("Ingest", iter(parts))).written_chunk_count == len(documents)
    hits = (await acme(pb.SearchRequest(namespaces=[GUIDE], query="oolong"))).hits
    assert sorted((hit.record.source.uri, hit.record.source.title) for hit in hits) == [
        ("a.csv", "row 2"),
        ("a.docx", "Tea"),
        ("a.html", "Tea"),
        ("a.json", "$"),
        ("a.pdf", "page 1"),
        ("a.py", "def oolong"),
        ("a.txt", ""),
    ]


async def test_replace_all_forgets_the_documents_not_brought_and_no_record_of_none(acme: Caller) -> None:
    await acme.ingest(("a.md", b"a"), ("b.md", b"b"), ("c.md", b"c"))
    await acme.write(GUIDE, own="mine")
    response = await acme.ingest(("b.md", b"b"), replace_all=True)
    assert response == pb.IngestResponse(document_count=1, unchanged_document_count=1, forgotten_chunk_count=2)
    left = (await acme(pb.ListRequest(namespace=GUIDE))).records
    assert sorted(record.text for record in left) == ["b", "mine"]


async def test_a_document_that_fails_leaves_the_one_it_would_have_replaced(acme: Caller) -> None:
    await acme.ingest(("a.md", b"old a"), ("b.md", b"old b"))
    for bad, reason, words in [
        (b"new b \xff", error_pb2.ERROR_REASON_INVALID_REQUEST, "'b.md' is not UTF-8 at byte 6"),
        (b"new b \0", error_pb2.ERROR_REASON_INVALID_REQUEST, "'b.md' has a NUL at character 6"),
    ]:
        with pytest.raises(AgentShellError) as error:
            await acme.ingest(("a.md", b"new a"), ("b.md", bad), replace_all=True)
        assert (error.value.reason, words in error.value.message) == (reason, True)
    left = (await acme(pb.ListRequest(namespace=GUIDE))).records
    assert sorted(record.text for record in left) == ["new a", "old b"]


async def test_a_document_over_the_limits_is_refused(acme: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(reading, "MAX_CHUNKS", 4)
    assert (await acme.ingest(("a.md", b"x" * 1000), ("b.md", b"# x\n" * 4))).written_chunk_count == 8
    for content, limit in ((b"x" * 1001, {"limit_bytes": "1000"}), (b"# x\n" * 5, {"limit_chunks": "4"})):
        with pytest.raises(AgentShellError) as error:
            await acme.ingest(("a.md", content))
        assert error.value.reason == error_pb2.ERROR_REASON_TOO_LARGE
        assert error.value.metadata == {"source_uri": "a.md", **limit}


async def test_a_stream_out_of_order_is_refused_by_the_name_of_the_part(acme: Caller) -> None:
    start = pb.IngestRequest(start=pb.IngestStart(namespace=GUIDE))
    content = pb.IngestRequest(content=b"tea")

    def document(media_type: str = "text/plain; charset=UTF-8") -> pb.IngestRequest:
        return pb.IngestRequest(document=pb.IngestDocument(source_uri="a", media_type=media_type))

    for parts, reason, field in [
        ([], error_pb2.ERROR_REASON_INVALID_REQUEST, "start"),
        ([document()], error_pb2.ERROR_REASON_INVALID_REQUEST, "start"),
        ([start, start], error_pb2.ERROR_REASON_INVALID_REQUEST, "start"),
        ([start, content], error_pb2.ERROR_REASON_INVALID_REQUEST, "content"),
        ([start, document(), document()], error_pb2.ERROR_REASON_INVALID_REQUEST, "document.source_uri"),
        ([start, document("application/zip")], error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED, "application/zip"),
    ]:
        with pytest.raises(AgentShellError) as error:
            await acme.send("Ingest", iter(parts))
        named = error.value.violations[0][0] if error.value.violations else error.value.metadata["feature"]
        assert (error.value.reason, named) == (reason, field)
    assert (await acme.send("Ingest", iter([start, document(), content]))).written_chunk_count == 1


async def test_concurrent_ingestions_of_a_document_leave_one_of_its_versions(acme: Caller) -> None:
    versions = [f"# A\n\nversion {n}\n\n# B\n\nversion {n}".encode() for n in range(6)]
    await asyncio.gather(*(acme.ingest(("a.md", version)) for version in versions))
    chunks = (await acme(pb.ListRequest(namespace=GUIDE))).records
    assert len(chunks) == 2
    assert len({chunk.text for chunk in chunks}) == 1
