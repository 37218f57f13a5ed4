"""A repeated request has one effect and one answer."""

from __future__ import annotations

import asyncio

from google.protobuf.message import Message as Request
from tests.contract.memory.caller import USER, Caller, said

from agentshell.db.database import Database
from agentshell.memory.stores.store import Store
from agentshell.memory.sweeper import Sweeper
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2 as pb


async def test_a_repeated_request_id_returns_the_first_answer_and_does_nothing(acme: Caller) -> None:
    requests: list[Request] = [
        pb.WriteRequest(namespace=USER, record=pb.Record(text="tea"), request_id="write"),
        pb.BatchWriteRequest(namespace=USER, records=[pb.Record(record_id="b", text="b")], request_id="batch"),
        pb.ForgetRequest(namespace=USER, records=pb.RecordIds(record_ids=["b"]), request_id="forget"),
        pb.ForgetRequest(namespace="user/bob", everything=True, request_id="forget everything"),
        pb.ForgetUserRequest(user_id="bob", request_id="forget user"),
        pb.AppendMessagesRequest(session_id="s", messages=[said("hi"), said("there")], request_id="append"),
    ]
    first = [await acme(request) for request in requests]
    assert [await acme(request) for request in requests] == first
    assert len(await acme.ids(USER)) == 1
    assert len((await acme(pb.ListMessagesRequest(session_id="s"))).messages) == 2
    assert len((await acme(pb.ListReceiptsRequest())).receipts) == 3


async def test_a_request_id_used_with_another_body_or_method_is_refused(acme: Caller, globex: Caller) -> None:
    def write(text: str) -> pb.WriteRequest:
        return pb.WriteRequest(namespace=USER, record=pb.Record(record_id="r", text=text), request_id="one")

    await acme(write("tea"))
    append = pb.AppendMessagesRequest(session_id="s", messages=[said("hi")], request_id="one")
    forgets = (
        pb.ForgetRequest(namespace=USER, everything=True, request_id="one"),
        pb.ForgetUserRequest(user_id="ann", request_id="one"),
    )
    for request in (write("coffee"), append, *forgets):
        assert (await acme.refused(request)).reason == error_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert (await globex(write("coffee"))).record.version == 1
    assert (await acme(pb.GetRequest(namespace=USER, record_id="r"))).record.text == "tea"


async def test_a_request_that_failed_may_be_sent_again_with_its_id(acme: Caller) -> None:
    request = pb.WriteRequest(
        namespace=USER, record=pb.Record(record_id="r", text="tea"), expected_version=1, request_id="one"
    )
    assert (await acme.refused(request)).reason == error_pb2.ERROR_REASON_VERSION_CONFLICT
    await acme.write(r="water")
    assert (await acme(request)).record.version == 2


async def test_concurrent_repeats_of_a_request_have_one_effect_and_one_answer(acme: Caller) -> None:
    append = pb.AppendMessagesRequest(session_id="s", messages=[said("hi")], request_id="append")
    write = pb.WriteRequest(namespace=USER, record=pb.Record(text="tea"), request_id="write")
    answers = await asyncio.gather(*(acme(append) for _ in range(8)), *(acme(write) for _ in range(8)))
    assert answers[:8] == [pb.AppendMessagesResponse(message_count=1)] * 8
    assert answers[8:] == [answers[8]] * 8
    assert await acme.ids(USER) == [answers[8].record.record_id]
    forget = pb.ForgetUserRequest(user_id="ann", request_id="forget")
    receipts = [answer.receipt for answer in await asyncio.gather(*(acme(forget) for _ in range(8)))]
    assert receipts == [receipts[0]] * 8
    assert receipts[0].record_count == 1


async def test_a_request_id_is_free_again_after_a_day(acme: Caller, database: Database) -> None:
    def write(text: str) -> pb.WriteRequest:
        return pb.WriteRequest(namespace=USER, record=pb.Record(record_id="r", text=text), request_id="one")

    await acme(write("tea"))
    async with database.connection() as connection:
        await connection.execute("UPDATE memory.requests SET create_time = create_time - interval '25 hours'")
    assert (await acme(write("coffee"))).record.version == 2


async def test_answers_older_than_a_day_are_taken_away_whosoever_they_are(
    acme: Caller, globex: Caller, database: Database, store: Store
) -> None:
    async with database.connection() as connection:
        await acme(pb.ForgetUserRequest(user_id="ann", request_id="old"))
        await globex(pb.ForgetUserRequest(user_id="ann", request_id="old"))
        await connection.execute("UPDATE memory.requests SET create_time = create_time - interval '25 hours'")
        await acme(pb.ForgetUserRequest(user_id="ann", request_id="new"))
        await Sweeper(database, store, interval_seconds=60).sweep()
        rows = await (await connection.execute("SELECT tenant_id, request_id FROM memory.requests")).fetchall()
    assert rows == [("acme", "new")]
