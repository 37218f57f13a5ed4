"""Tenants share nothing but shared knowledge."""

from __future__ import annotations

from tests.contract.memory.caller import GUIDE, USER, Caller, pages_of, said

from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb


async def test_no_tenant_sees_or_touches_what_another_has(acme: Caller, globex: Caller) -> None:
    for namespace in (USER, "session/s", GUIDE):
        await acme.write(namespace, r="Ann likes tea.")
    await acme(pb.AppendMessagesRequest(session_id="s", messages=[said("hi")], request_id="1"))
    await acme.ingest(("a.md", b"# A\n\ntea"))
    everything = pb.SearchRequest(namespaces=[USER, "session/s", GUIDE], query="tea", limit=100)
    seen = await acme(everything)
    assert len(seen.hits) == 4

    assert await globex(everything) == pb.SearchResponse()
    assert await globex(pb.ListMessagesRequest(session_id="s")) == pb.ListMessagesResponse()
    for namespace in (USER, "session/s", GUIDE):
        missing = await globex.refused(pb.GetRequest(namespace=namespace, record_id="r"))
        assert missing.reason == error_pb2.ERROR_REASON_RECORD_NOT_FOUND
        assert await globex(pb.ListRequest(namespace=namespace)) == pb.ListResponse()
        for forget in (
            pb.ForgetRequest(namespace=namespace, records=pb.RecordIds(record_ids=["r"])),
            pb.ForgetRequest(namespace=namespace, source_uri="a.md"),
            pb.ForgetRequest(namespace=namespace, everything=True),
        ):
            answer = await globex(forget)
            assert (answer.record_count, answer.message_count) == (0, 0)
        several = await globex(pb.BatchGetRequest(namespace=namespace, record_ids=["r"]))
        assert several == pb.BatchGetResponse(missing_record_ids=["r"])
        assert await globex.export(namespace=namespace) == []
    assert await globex.export(everything=True) == await globex.export(user_id="ann") == []
    assert list((await globex(pb.StatsRequest())).namespaces) == []
    forgotten = (await globex(pb.ForgetUserRequest(user_id="ann"))).receipt
    assert (forgotten.record_count, forgotten.message_count) == (0, 0)
    written = await globex(pb.WriteRequest(namespace=USER, record=pb.Record(record_id="r", text="coffee")))
    assert written.record.version == 1
    assert (await globex(pb.BatchWriteRequest(namespace=GUIDE, records=[pb.Record(record_id="r", text="x")]))).records
    appended = await globex(pb.AppendMessagesRequest(session_id="s", messages=[said("yo")], request_id="1"))
    assert appended.message_count == 1
    assert (await globex.ingest(("a.md", b"# A\n\ntea"), replace_all=True)).written_chunk_count == 1

    assert await acme(everything) == seen
    assert len((await acme(pb.ListMessagesRequest(session_id="s"))).messages) == 1


async def test_all_tenants_read_shared_knowledge_and_none_writes_it(acme: Caller, shared: Caller) -> None:
    await shared.write(GUIDE, both="shared tea", common="more tea")
    await shared.write(USER, private="tea of the mesh")
    await acme.write(GUIDE, both="own tea", own="tea")
    assert sorted(await acme.search("tea", GUIDE, USER)) == ["both", "both", "common", "own"]
    assert (await acme(pb.GetRequest(namespace=GUIDE, record_id="both"))).record.text == "own tea"
    assert (await acme(pb.GetRequest(namespace=GUIDE, record_id="common"))).record.text == "more tea"
    pages = await pages_of(acme, pb.ListRequest(namespace=GUIDE, page_size=1))
    assert [record.record_id for page in pages for record in page.records] == ["both", "both", "common", "own"]
    assert await acme.forget(GUIDE, everything=True) == (2, 0)
    assert await acme.ids(GUIDE) == await shared.ids(GUIDE) == ["both", "common"]
