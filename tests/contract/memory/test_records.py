"""Records are written, read and listed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.message import Message as Request
from google.protobuf.timestamp_pb2 import Timestamp
from tests.contract.memory.caller import GUIDE, TIMEOUT_SECONDS, USER, Caller, pages_of, said, struct

from agentshell.memory import checks, service
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb


async def test_a_record_comes_back_as_it_was_written(acme: Caller) -> None:
    record = pb.Record(
        record_id="r",
        kind=pb.RECORD_KIND_PREFERENCE,
        text="Likes tea. Ünïcödé 🍵",
        metadata=struct(cups=2.5, kinds=["green", {"from": "Assam"}], hot=True, sugar=None, nested={"a": {}}),
        source=pb.Source(uri="chat", title="Breakfast", chunk_index=3, record_ids=["a", "b"]),
        user_id="bob",
        expire_time=Timestamp(seconds=4_000_000_000, nanos=123_456_000),
    )
    before = datetime.now(UTC) - timedelta(seconds=5)
    written = (await acme(pb.WriteRequest(namespace=USER, record=record))).record
    assert before < written.create_time.ToDatetime(UTC) < before + timedelta(seconds=TIMEOUT_SECONDS)
    record.create_time.CopyFrom(written.create_time)
    record.update_time.CopyFrom(written.create_time)
    record.version = 1
    assert written == record
    assert (await acme(pb.GetRequest(namespace=USER, record_id="r"))).record == record
    assert list((await acme(pb.ListRequest(namespace=USER))).records) == [record]
    assert (await acme(pb.SearchRequest(namespaces=[USER], query="tea"))).hits[0].record == record


async def test_what_a_write_leaves_out_the_server_makes_or_leaves_absent(acme: Caller) -> None:
    written = (await acme(pb.WriteRequest(namespace=USER, record=pb.Record(text="plain", version=7)))).record
    assert len(written.record_id) == 26
    assert (written.kind, written.version) == (pb.RECORD_KIND_FACT, 1)
    absent = ("metadata", "source", "expire_time")
    assert not any(written.HasField(field) for field in absent)
    read = (await acme(pb.GetRequest(namespace=USER, record_id=written.record_id))).record
    assert read == written


async def test_a_write_replaces_the_record_and_counts_its_version(acme: Caller) -> None:
    first = (
        await acme(pb.WriteRequest(namespace=USER, record=pb.Record(record_id="r", text="old", metadata=struct(a=1))))
    ).record
    second = (await acme(pb.WriteRequest(namespace=USER, record=pb.Record(record_id="r", text="new")))).record
    assert (second.version, second.create_time) == (2, first.create_time)
    assert second.update_time.ToDatetime() > first.update_time.ToDatetime()
    assert (await acme(pb.GetRequest(namespace=USER, record_id="r"))).record == second
    assert await acme.search("old", mode=pb.SEARCH_MODE_TEXT) == []


async def test_a_write_that_expects_another_version_is_refused_and_changes_nothing(acme: Caller) -> None:
    def write(expected: int) -> pb.WriteRequest:
        record = pb.Record(record_id="r", text=f"after {expected}")
        return pb.WriteRequest(namespace=USER, record=record, expected_version=expected)

    missing = await acme.refused(write(1))
    assert (missing.reason, missing.metadata["version"]) == (error_pb2.ERROR_REASON_VERSION_CONFLICT, "0")
    assert (await acme(write(0))).record.version == 1
    present = await acme.refused(write(0))
    assert (present.reason, present.metadata["version"]) == (error_pb2.ERROR_REASON_VERSION_CONFLICT, "1")
    assert (await acme(write(1))).record.version == 2
    assert (await acme(pb.GetRequest(namespace=USER, record_id="r"))).record.text == "after 1"


async def test_of_concurrent_writes_that_expect_the_same_version_one_wins(acme: Caller) -> None:
    def write(text: str) -> pb.WriteRequest:
        return pb.WriteRequest(namespace=USER, record=pb.Record(record_id="r", text=text), expected_version=0)

    results = await asyncio.gather(*(acme(write(f"by {n}")) for n in range(8)), return_exceptions=True)
    lost = [result.reason for result in results if isinstance(result, AgentShellError)]
    assert lost == [error_pb2.ERROR_REASON_VERSION_CONFLICT] * 7


async def test_a_batch_answers_in_its_order_and_writes_all_or_none(acme: Caller) -> None:
    records = [pb.Record(record_id=name, text=name) for name in ("c", "a", "b")]
    response = await acme(pb.BatchWriteRequest(namespace=USER, records=records))
    assert [(record.record_id, record.text, record.version) for record in response.records] == [
        ("c", "c", 1), ("a", "a", 1), ("b", "b", 1),
    ]  # fmt: skip
    broken = [pb.Record(record_id="d", text="d"), pb.Record(record_id="e", text="e\0")]
    error = await acme.refused(pb.BatchWriteRequest(namespace=USER, records=broken))
    assert [field for field, _ in error.violations] == ["records[1].text"]
    assert await acme.ids(USER) == ["a", "b", "c"]


async def test_a_batch_is_no_larger_than_what_its_answer_can_hold(acme: Caller) -> None:
    records = [pb.Record(record_id=f"r{n}", text="x" * 65536) for n in range(48)]
    error = await acme.refused(pb.BatchWriteRequest(namespace=USER, records=records))
    assert (error.name, error.metadata) == ("TOO_LARGE", {"limit_bytes": "3145728"})
    assert await acme.ids(USER) == []
    assert len((await acme(pb.BatchWriteRequest(namespace=USER, records=records[:47]))).records) == 47


WITH_NUL: dict[str, Request] = {
    "record.text": pb.WriteRequest(namespace=USER, record=pb.Record(text="a\0b")),
    "record.record_id": pb.WriteRequest(namespace=USER, record=pb.Record(record_id="\0", text="a")),
    "record.source.title": pb.WriteRequest(namespace=USER, record=pb.Record(text="a", source=pb.Source(title="\0"))),
    "record.metadata.fields.k.list_value.values[0].string_value": pb.WriteRequest(
        namespace=USER, record=pb.Record(text="a", metadata=struct(k=["\0"]))
    ),
    "record.metadata.fields": pb.WriteRequest(namespace=USER, record=pb.Record(text="a", metadata=struct(**{"\0": 1}))),
    "query": pb.SearchRequest(namespaces=[USER], query="\0"),
    "filter.fields.k.string_value": pb.ListRequest(namespace=USER, filter=struct(k="\0")),
    "record_id": pb.GetRequest(namespace=USER, record_id="\0"),
    "records.record_ids[1]": pb.ForgetRequest(namespace=USER, records=pb.RecordIds(record_ids=["a", "\0"])),
    "request_id": pb.AppendMessagesRequest(session_id="s", request_id="\0", messages=[said("hi")]),
    "session_id": pb.ListMessagesRequest(session_id="\0"),
    "record_ids[0]": pb.BatchGetRequest(namespace=USER, record_ids=["\0"]),
    "filter.fields": pb.ForgetRequest(namespace=USER, filter=struct(**{"\0": 1})),
    "user_id": pb.ListReceiptsRequest(user_id="\0"),
}


async def test_a_nul_is_refused_by_the_name_of_its_field(acme: Caller) -> None:
    for field, request in WITH_NUL.items():
        error = await acme.refused(request)
        assert (error.reason, [name for name, _ in error.violations]) == (
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            [field],
        )


async def test_metadata_that_json_cannot_hold_and_what_is_too_large_is_refused(acme: Caller) -> None:
    def write(**metadata: Any) -> pb.WriteRequest:
        return pb.WriteRequest(namespace=USER, record=pb.Record(text="a", metadata=struct(**metadata)))

    error = await acme.refused(write(n=float("nan")))
    assert (error.reason, error.violations[0][0]) == (error_pb2.ERROR_REASON_INVALID_REQUEST, "record.metadata")
    error = await acme.refused(pb.WriteRequest(namespace=USER, record=pb.Record(text="ü" * 32_769)))
    assert (error.reason, error.violations[0][0]) == (error_pb2.ERROR_REASON_INVALID_REQUEST, "record.text")
    error = await acme.refused(write(n="x" * checks.MAX_METADATA_BYTES))
    assert (error.reason, error.metadata["limit_bytes"]) == (error_pb2.ERROR_REASON_TOO_LARGE, "65536")
    error = await acme.refused(
        pb.WriteRequest(namespace=USER, record=pb.Record(text="a", expire_time=Timestamp(seconds=10**15)))
    )
    assert (error.reason, error.violations[0][0]) == (error_pb2.ERROR_REASON_INVALID_REQUEST, "record.expire_time")


async def test_several_records_come_in_the_order_asked_for_and_what_is_not_there_is_named(acme: Caller) -> None:
    await acme.write(a="tea", b="milk", c="sugar")
    response = await acme(pb.BatchGetRequest(namespace=USER, record_ids=["c", "none", "a", "c"]))
    assert [(record.record_id, record.text) for record in response.records] == [("c", "sugar"), ("a", "tea")]
    assert (list(response.missing_record_ids), list(response.left_record_ids)) == (["none"], [])


async def test_what_does_not_fit_a_message_is_named_so_that_it_can_be_asked_for_again(
    acme: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_PAGE_BYTES", 2000)
    await acme.write(a="a" * 1000, b="b" * 1000, c="c" * 1000)
    response = await acme(pb.BatchGetRequest(namespace=USER, record_ids=["c", "b", "none", "a"]))
    assert [record.record_id for record in response.records] == ["c"]
    assert (list(response.missing_record_ids), list(response.left_record_ids)) == (["none"], ["b", "a"])


@pytest.mark.parametrize("descending", [False, True])
async def test_a_list_goes_by_id_or_by_time_and_can_be_resumed_anywhere(acme: Caller, descending: bool) -> None:
    for name in ("b", "d", "a"):  # One by one, so that each has its own time.
        await acme.write(**{name: "tea"})
    await acme.write(z="tea", y="tea")  # Both have the same times, so they sort by id.
    await acme.write(d="cold tea")
    orders = {"record_id": "abdyz", "create_time": "bdayz", "update_time": "bayzd"}
    for key, expected in orders.items():
        order_by = f"{key} desc" if descending else key
        pages = await pages_of(acme, pb.ListRequest(namespace=USER, page_size=2, order_by=order_by))
        names = "".join(record.record_id for page in pages for record in page.records)
        assert (names, len(pages)) == (expected[::-1] if descending else expected, 3)


async def test_a_list_goes_by_time_through_own_and_shared_knowledge(acme: Caller, shared: Caller) -> None:
    await shared.write(GUIDE, a="shared")
    await acme.write(GUIDE, b="own")
    await shared.write(GUIDE, c="shared")
    pages = await pages_of(acme, pb.ListRequest(namespace=GUIDE, page_size=1, order_by="create_time desc"))
    assert [record.record_id for page in pages for record in page.records] == ["c", "b", "a"]


async def test_a_list_holds_only_what_is_of_the_kinds_and_has_the_metadata(acme: Caller) -> None:
    kinds = {"f": pb.RECORD_KIND_FACT, "p": pb.RECORD_KIND_PREFERENCE, "s": pb.RECORD_KIND_SUMMARY}
    for name, kind in kinds.items():
        record = pb.Record(record_id=name, kind=kind, text="tea", metadata=struct(hot=name != "p"))
        await acme(pb.WriteRequest(namespace=USER, record=record))
    asked = pb.ListRequest(namespace=USER, kinds=[pb.RECORD_KIND_PREFERENCE, pb.RECORD_KIND_SUMMARY])
    assert [record.record_id for record in (await acme(asked)).records] == ["p", "s"]
    asked.filter.update({"hot": True})
    assert [record.record_id for record in (await acme(asked)).records] == ["s"]


async def test_a_list_has_each_record_once_in_the_order_of_their_bytes(acme: Caller) -> None:
    names = ["Z", "a", "b-1", "b_1", "c", "é", "🍵"]
    await acme.write(**dict.fromkeys(names, "tea"))
    await acme.write("user/other", x="tea")
    pages = await pages_of(acme, pb.ListRequest(namespace=USER, page_size=3))
    assert [[record.record_id for record in page.records] for page in pages] == [names[:3], names[3:6], names[6:]]


async def test_a_page_token_is_good_for_its_own_list_alone(acme: Caller, globex: Caller) -> None:
    for one in (acme, globex):
        await one.write(a="tea", b="tea", c="tea")
        await one(pb.AppendMessagesRequest(session_id="s", messages=[said("1"), said("2")], request_id="1"))
    token = (await acme(pb.ListRequest(namespace=USER, page_size=1))).next_page_token
    older = (await acme(pb.ListMessagesRequest(session_id="s", page_size=1))).next_page_token
    refused: list[tuple[Caller, Request]] = [
        (acme, pb.ListRequest(namespace="user/other", page_token=token)),
        (acme, pb.ListRequest(namespace=USER, filter=struct(a=1), page_token=token)),
        (globex, pb.ListRequest(namespace=USER, page_token=token)),
        (acme, pb.ListRequest(namespace=USER, page_token=older)),
        (acme, pb.ListRequest(namespace=USER, page_token="made up")),
        (acme, pb.ListMessagesRequest(session_id="s", page_token=token)),
        (acme, pb.ListMessagesRequest(session_id="other", page_token=older)),
        (globex, pb.ListMessagesRequest(session_id="s", page_token=older)),
    ]
    for caller, request in refused:
        assert (await caller.refused(request)).reason == error_pb2.ERROR_REASON_PAGE_TOKEN_INVALID
    assert len((await acme(pb.ListRequest(namespace=USER, page_size=5, page_token=token))).records) == 2
