"""A copy is exported and imported: all of it, once, and unchanged."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.contract.memory.caller import GUIDE, TIMEOUT_SECONDS, USER, Caller, said, struct, texts

from agentshell.memory import copies
from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from kfm.content.v1.content_pb2 import Message
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb

BATCH_ITEMS = 3


def items_of(responses: Iterable[pb.ExportResponse]) -> list[pb.Item]:
    return [response.item for response in responses]


async def take(caller: Caller, items: Sequence[pb.Item]) -> tuple[int, int, int, int]:
    """Imports items in small requests; returns the numbers of records and of messages written and left."""
    batches = [items[at : at + BATCH_ITEMS] for at in range(0, len(items), BATCH_ITEMS)]
    answer = await caller.send("Import", iter([pb.ImportRequest(items=batch) for batch in batches]))
    return (
        answer.record_count,
        answer.unchanged_record_count,
        answer.message_count,
        answer.unchanged_message_count,
    )


async def _fill(caller: Caller) -> None:
    """Stores something of every kind."""
    record = pb.Record(
        record_id="whole",
        kind=pb.RECORD_KIND_SUMMARY,
        text="Ünïcödé 🍵",
        metadata=struct(a=[1, {"b": None}]),
        source=pb.Source(uri="chat", title="Tea", chunk_index=2, record_ids=["x"]),
        expire_time=Timestamp(seconds=4_000_000_000),
        user_id="bob",
    )
    for _ in range(2):  # So its version is 2.
        await caller(pb.WriteRequest(namespace=GUIDE, record=record))
    await caller.write(USER, a="tea", b="milk")
    await caller.write("session/s", sum="Short.")
    for n in range(2):
        append = pb.AppendMessagesRequest(session_id="s", messages=[said(f"{n}a"), said("\0")], request_id=str(n))
        append.user_id = "ann"
        await caller(append)
    await caller(pb.AppendMessagesRequest(session_id="t", messages=[said("hi")], request_id="t"))


async def test_what_is_exported_and_imported_is_the_same_in_every_respect(acme: Caller, globex: Caller) -> None:
    await _fill(acme)
    exported = items_of(await acme.export(everything=True))
    assert [item.WhichOneof("kind") for item in exported] == ["record"] * 4 + ["message"] * 5
    assert await take(globex, exported) == (4, 0, 5, 0)
    assert items_of(await globex.export(everything=True)) == exported
    assert (await globex(pb.GetRequest(namespace=GUIDE, record_id="whole"))).record.version == 2
    history = (await globex(pb.ListMessagesRequest(session_id="s"))).messages
    assert texts(history) == ["0a", "\0", "1a", "\0"]
    for mode in (pb.SEARCH_MODE_VECTOR, pb.SEARCH_MODE_TEXT):
        assert await globex.search("tea", mode=mode, limit=1) == ["a"]
    appended = pb.AppendMessagesRequest(session_id="s", messages=[said("next")], request_id="next")
    assert (await globex(appended)).message_count == 5
    assert (await globex(pb.ForgetUserRequest(user_id="ann"))).receipt.message_count == 5


async def test_an_export_of_a_user_or_a_namespace_has_what_belongs_to_it_and_nothing_else(acme: Caller) -> None:
    await _fill(acme)
    await acme(pb.WriteRequest(namespace=USER, record=pb.Record(record_id="c", text="of both", user_id="bob")))

    def names(items: Iterable[pb.Item]) -> list[str]:
        return [item.record.record.record_id or f"{item.message.session_id}{item.message.position}" for item in items]

    assert names(items_of(await acme.export(user_id="ann"))) == ["sum", "a", "b", "c", "s1", "s2", "s3", "s4"]
    assert names(items_of(await acme.export(user_id="bob"))) == ["whole", "c"]
    assert names(items_of(await acme.export(namespace="session/s"))) == ["sum", "s1", "s2", "s3", "s4"]
    assert names(items_of(await acme.export(namespace=USER))) == ["a", "b", "c"]


async def test_an_export_goes_on_after_any_item_and_holds_little_at_a_time(
    acme: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(acme)
    whole = await acme.export(everything=True)
    for limits in ((1, 1 << 20), (2, 1 << 20), (500, 1)):
        monkeypatch.setattr(copies, "PAGE_ITEMS", limits[0])
        monkeypatch.setattr(copies, "PAGE_BYTES", limits[1])
        for done in range(len(whole) + 1):
            cursor = whole[done - 1].cursor if done else ""
            assert await acme.export(everything=True, cursor=cursor) == whole[done:]


async def test_a_cursor_is_good_for_its_own_export_alone(acme: Caller, globex: Caller) -> None:
    await _fill(acme)
    cursor = (await acme.export(everything=True))[0].cursor
    refused: list[tuple[Caller, dict[str, Any]]] = [
        (acme, {"user_id": "ann", "cursor": cursor}),
        (acme, {"namespace": USER, "cursor": cursor}),
        (globex, {"everything": True, "cursor": cursor}),
        (acme, {"everything": True, "cursor": "made up"}),
    ]
    for caller, request in refused:
        with pytest.raises(AgentShellError) as error:
            await caller.export(**request)
        assert error.value.reason == error_pb2.ERROR_REASON_CURSOR_INVALID


async def test_an_import_leaves_what_is_there_at_the_same_or_a_later_version(acme: Caller, globex: Caller) -> None:
    await acme.write(new="old text", same="same", late="old text")
    await acme.write(new="new text")
    old = items_of(await acme.export(everything=True))
    await globex.write(new="first", same="kept", late="1")
    await globex.write(late="2")
    before = {record.record_id: record for record in (await globex(pb.ListRequest(namespace=USER))).records}
    assert await take(globex, [old[1], *old]) == (1, 3, 0, 0)  # `new` comes twice in one request.
    after = {record.record_id: record for record in (await globex(pb.ListRequest(namespace=USER))).records}
    assert after == {**before, "new": (await acme(pb.GetRequest(namespace=USER, record_id="new"))).record}
    assert await globex.search("new text", mode=pb.SEARCH_MODE_TEXT) == ["new"]
    assert await take(globex, old) == (0, 3, 0, 0)


async def test_an_import_that_is_repeated_or_overlaps_another_adds_each_message_once(
    acme: Caller, globex: Caller
) -> None:
    messages = [said(str(n)) for n in range(5)]
    await acme(pb.AppendMessagesRequest(session_id="s", messages=messages, request_id="1"))
    exported = items_of(await acme.export(everything=True))
    assert await take(globex, exported[:3]) == (0, 0, 3, 0)
    results = await asyncio.gather(*(take(globex, exported[first:]) for first in (0, 1, 2, 3)))
    assert sum(written for _, _, written, _ in results) == 2
    assert texts((await globex(pb.ListMessagesRequest(session_id="s"))).messages) == list("01234")


def _stored(**fields: Any) -> pb.Item:
    made = pb.StoredRecord(namespace=USER, record=pb.Record(record_id="r", text="tea"))
    made.record.MergeFrom(pb.Record(**fields))
    return pb.Item(record=made)


@pytest.mark.parametrize(
    ("bad", "reason", "field"),
    [
        (
            pb.Item(message=pb.StoredMessage(session_id="s", position=2, message=said("hi"))),
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "items.message.position",
        ),
        (
            pb.Item(record=pb.StoredRecord(namespace=USER, record=pb.Record(text="tea"))),
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "items[1].record.record.record_id",
        ),
        (_stored(text="a\0"), error_pb2.ERROR_REASON_INVALID_REQUEST, "record.text"),
        (
            _stored(create_time=Timestamp(seconds=10**15)),
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "items[1].record.record.create_time",
        ),
        (_stored(text="x" * 65_537), error_pb2.ERROR_REASON_INVALID_REQUEST, "items[1].record.record.text"),
        (_stored(metadata=struct(a="x" * 65_536)), error_pb2.ERROR_REASON_TOO_LARGE, ""),
    ],
)
async def test_a_request_with_an_item_that_cannot_be_is_refused_whole(
    acme: Caller, bad: pb.Item, reason: Any, field: str
) -> None:
    good = [_stored(record_id="a"), _stored(record_id="b")]
    requests = [pb.ImportRequest(items=good[:1]), pb.ImportRequest(items=[good[1], bad])]
    with pytest.raises(AgentShellError) as error:
        await acme.send("Import", iter(requests))
    assert error.value.reason == reason
    assert [name for name, _ in error.value.violations] == ([field] if field else [])
    assert await acme.ids(USER) == ["a"]


async def test_an_import_that_is_cut_off_has_written_whole_requests_and_can_be_sent_again(
    acme: Caller, globex: Caller
) -> None:
    await acme.write(a="tea", b="milk", c="sugar")
    exported = items_of(await acme.export(everything=True))
    first_is_in = asyncio.Event()

    async def requests() -> AsyncGenerator[pb.ImportRequest]:
        yield pb.ImportRequest(items=exported[:2])
        await first_is_in.wait()
        await asyncio.Event().wait()  # Never ends on its own.

    metadata = (("authorization", f"Bearer {globex.credential}"),)
    call = globex.stub.Import(requests(), metadata=metadata, timeout=TIMEOUT_SECONDS)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while await globex.ids(USER) != ["a", "b"]:  # noqa: ASYNC110 - the call answers only at its end
            await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    first_is_in.set()
    assert await take(globex, exported) == (1, 2, 0, 0)
    assert items_of(await globex.export(everything=True)) == exported


async def test_an_export_that_is_cut_off_goes_on_from_its_last_cursor(
    acme: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(acme)
    whole = await acme.export(everything=True)
    monkeypatch.setattr(copies, "PAGE_ITEMS", 1)
    metadata = (("authorization", f"Bearer {acme.credential}"),)
    call = acme.stub.Export(pb.ExportRequest(everything=True), metadata=metadata, timeout=TIMEOUT_SECONDS)
    first = await call.read()
    call.cancel()
    assert [first, *await acme.export(everything=True, cursor=first.cursor)] == whole
    # Not 0, which gRPC rounds up to an instant in which a first page may arrive.
    expired = acme.stub.Export(pb.ExportRequest(everything=True), metadata=metadata, timeout=-1.0)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await expired.read()
    assert errors.of(error.value).reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert await acme.export(everything=True) == whole


_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.floats(-1e9, 1e9) | _text, lambda inner: st.lists(inner, max_size=2)
)
_record = st.builds(
    pb.Record,
    record_id=_text,
    kind=st.sampled_from([pb.RECORD_KIND_FACT, pb.RECORD_KIND_CHUNK]),
    text=_text,
    metadata=st.none() | st.dictionaries(_text, _json, max_size=2).map(lambda fields: struct(**fields)),
    source=st.none() | st.builds(pb.Source, uri=_text, title=_text, record_ids=st.lists(_text, max_size=2)),
    user_id=st.sampled_from(["", "ann", "bob"]),
)
_namespace = st.sampled_from([USER, GUIDE, "session/s", "session/t", "personality/p"])
_messages = st.lists(_text.map(said), min_size=1, max_size=3)


@settings(
    max_examples=8,
    phases=[Phase.generate],  # Shrinking a failure would take longer than reading it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    records=st.lists(st.tuples(_namespace, _record), max_size=6),
    histories=st.dictionaries(st.sampled_from(["s", "t"]), _messages),
)
async def test_any_memory_exported_and_imported_elsewhere_is_the_same(
    caller: Callable[[str], Caller],
    records: list[tuple[str, pb.Record]],
    histories: dict[str, list[Message]],
) -> None:
    origin, copy = (caller(uuid.uuid4().hex) for _ in range(2))
    for namespace, record in records:
        await origin(pb.WriteRequest(namespace=namespace, record=record))
    for session_id, messages in histories.items():
        append = pb.AppendMessagesRequest(session_id=session_id, messages=messages, request_id=uuid.uuid4().hex)
        await origin(append)
    exported = items_of(await origin.export(everything=True))
    distinct = {(namespace, record.record_id) for namespace, record in records}
    assert len(exported) == len(distinct) + sum(map(len, histories.values()))
    await take(copy, exported)
    assert items_of(await copy.export(everything=True)) == exported
    counted = await copy(pb.StatsRequest())
    assert counted == await origin(pb.StatsRequest())
