"""Session histories keep every message, once and in order."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.contract.memory.caller import Caller, pages_of, said, texts

from agentshell.db.database import Database
from agentshell.memory import service
from agentshell.memory.stores.history import History
from agentshell.memory.stores.store import Once, Store
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Image, Message, Part, Text
from kfm.memory.v1 import memory_service_pb2 as pb


async def test_a_history_keeps_its_messages_whole_and_in_order(acme: Caller) -> None:
    first = Message(role=ROLE_USER, parts=[Part(text=Text(text="a\0b"))], create_time=Timestamp(seconds=5))
    second = Message(role=ROLE_ASSISTANT, parts=[Part(image=Image(media_type="image/png", data=b"\0\xff"))])
    appended = await acme(pb.AppendMessagesRequest(session_id="s:p", messages=[first, second], request_id="1"))
    assert appended == pb.AppendMessagesResponse(message_count=2)
    messages = (await acme(pb.ListMessagesRequest(session_id="s:p"))).messages
    assert messages[1].HasField("create_time")
    second.create_time.CopyFrom(messages[1].create_time)
    assert list(messages) == [first, second]


async def test_the_newest_messages_come_first_by_page_and_last_within_it(acme: Caller) -> None:
    for n in range(4):
        messages = [said(f"{n}a"), said(f"{n}b")]
        await acme(pb.AppendMessagesRequest(session_id="s", messages=messages, request_id=str(n)))
    pages = await pages_of(acme, pb.ListMessagesRequest(session_id="s", page_size=3))
    assert [texts(page.messages) for page in pages] == [["2b", "3a", "3b"], ["1a", "1b", "2a"], ["0a", "0b"]]


async def test_a_page_of_large_messages_ends_early_and_goes_on(acme: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_PAGE_BYTES", 1000)
    messages = [said(text * 300) for text in "abc"] + [said("d" * 2000), said("e")]
    await acme(pb.AppendMessagesRequest(session_id="s", messages=messages, request_id="1"))
    pages = await pages_of(acme, pb.ListMessagesRequest(session_id="s"))
    assert [[text[0] for text in texts(page.messages)] for page in pages] == [["e"], ["d"], ["a", "b", "c"]]


async def test_concurrent_appends_to_a_session_are_each_whole_and_none_is_lost(acme: Caller) -> None:
    def append(n: int) -> pb.AppendMessagesRequest:
        messages = [said(f"{n}.{part}") for part in range(3)]
        return pb.AppendMessagesRequest(session_id="s", messages=messages, request_id=str(n))

    counts = await asyncio.gather(*(acme(append(n)) for n in range(12)))
    assert sorted(answer.message_count for answer in counts) == list(range(3, 39, 3))
    history = texts((await acme(pb.ListMessagesRequest(session_id="s"))).messages)
    in_order = [int(text.partition(".")[0]) for text in history[::3]]
    assert history == [f"{n}.{part}" for n in in_order for part in range(3)]
    assert [counts[n].message_count for n in in_order] == list(range(3, 39, 3))


async def test_a_conversation_is_of_the_first_user_that_is_named(acme: Caller) -> None:
    for request_id, user_id in enumerate(["", "ann", "bob"]):
        await acme(
            pb.AppendMessagesRequest(session_id="s", messages=[said("hi")], request_id=str(request_id), user_id=user_id)
        )
    forgotten = [(await acme(pb.ForgetUserRequest(user_id=user))).receipt.message_count for user in ("bob", "ann")]
    assert forgotten == [0, 3]


@pytest.mark.parametrize("count", [1, 127, 128, 16_383, 16_384, 2**31, 2**63 - 1])
async def test_an_answer_is_what_protobuf_makes_of_it_however_many_messages_there_are(
    database: Database, store: Store, count: int
) -> None:
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO memory.sessions VALUES ('acme', 's', %s, '')", [count - 1])
    answer = await History(database).append("acme", "s", [Message()], "", Once("1", b""))
    assert answer == pb.AppendMessagesResponse(message_count=count)
    assert await History(database).append("acme", "s", [Message()], "", Once("1", b"")) == answer
