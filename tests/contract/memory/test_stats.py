"""Stats report what each namespace holds."""

from __future__ import annotations

from tests.contract.memory.caller import GUIDE, USER, Caller, pages_of, said

from agentshell.memory.stores.store import Store
from kfm.memory.v1 import memory_service_pb2 as pb


async def test_stats_count_records_by_kind_their_bytes_and_messages(acme: Caller, globex: Caller, store: Store) -> None:
    for name, kind in (("a", "FACT"), ("b", "FACT"), ("ü", "SUMMARY")):
        record = pb.Record(record_id=name, text=name * 10, kind=pb.RecordKind.Value(f"RECORD_KIND_{kind}"))
        await acme(pb.WriteRequest(namespace="session/s", record=record))
    await acme(pb.AppendMessagesRequest(session_id="s", messages=[said("hi"), said("there")], request_id="1"))
    await acme(pb.AppendMessagesRequest(session_id="t", messages=[said("hi")], request_id="2"))
    await acme.write(USER, a="tea")
    await globex.write(USER, a="tea", b="tea")
    user = pb.NamespaceStats(
        namespace=USER,
        record_count=1,
        record_counts={"RECORD_KIND_FACT": 1},
        text_bytes=3,
        embedder="lexical",
        dimension=2048,
    )
    session = pb.NamespaceStats(
        namespace="session/s",
        record_count=3,
        record_counts={"RECORD_KIND_FACT": 2, "RECORD_KIND_SUMMARY": 1},
        text_bytes=40,
        message_count=2,
        embedder="lexical",
        dimension=2048,
    )
    talk = pb.NamespaceStats(namespace="session/t", message_count=1)
    name = store.abilities.name
    assert await acme(pb.StatsRequest()) == pb.StatsResponse(namespaces=[session, talk, user], store=name)
    assert await acme(pb.StatsRequest(namespace=USER)) == pb.StatsResponse(namespaces=[user], store=name)
    assert await acme(pb.StatsRequest(namespace="session/s")) == pb.StatsResponse(namespaces=[session], store=name)
    assert await acme(pb.StatsRequest(namespace="user/none")) == pb.StatsResponse(store=name)


async def test_stats_come_page_by_page_with_each_namespace_once(acme: Caller) -> None:
    records = [GUIDE, "personality/p", "session/b", "session/d", "user/a", "user/z"]
    for namespace in records:
        await acme.write(namespace, r="tea")
    for session in ("a", "b", "c"):
        await acme(pb.AppendMessagesRequest(session_id=session, messages=[said("hi")], request_id=session))
    expected = sorted({*records, "session/a", "session/b", "session/c"})
    for size in (1, 2, 3, 5, len(expected)):
        pages = await pages_of(acme, pb.StatsRequest(page_size=size))
        assert [each.namespace for page in pages for each in page.namespaces] == expected
        assert [len(page.namespaces) for page in pages[:-1]] == [size] * (len(pages) - 1)
        assert len(pages) == -(-len(expected) // size)
        messages = {each.namespace: each.message_count for page in pages for each in page.namespaces}
        assert [name for name, count in messages.items() if count] == ["session/a", "session/b", "session/c"]
