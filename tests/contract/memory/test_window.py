"""A window of a history fits a prompt, and a rolling summary covers what it leaves out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import grpc.aio
import pytest
from tests.contract.memory.caller import Caller, said, struct, texts
from tests.contract.serving import member
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Fault, Reply, Request

from agentshell.db.database import Database
from agentshell.memory import summary
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.mesh import channel
from agentshell.mesh.call import Principal
from agentshell.mesh.config import MemoryConfig, ProviderConfig
from agentshell.provider.service import ProviderService
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, Message
from kfm.memory.v1 import memory_service_pb2 as pb
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub, add_MemoryServiceServicer_to_server
from kfm.provider.v1.provider_service_pb2_grpc import add_ProviderServiceServicer_to_server

WAIT_SECONDS = 20


@dataclass
class Vendor(OpenAIChatServer):
    """Answers with the number of messages it was given to summarise, once `gate` is open."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def _serve(self, request: Request, connection: object) -> bool:
        await asyncio.wait_for(self.gate.wait(), WAIT_SECONDS)
        self.reply = Reply(texts=(f"{len(self.given(-1))} messages",))
        return await super()._serve(request, connection)  # pyright: ignore[reportArgumentType] - passed through

    def given(self, request: int) -> list[str]:
        """Returns the conversation in a request."""
        question = self.requests[request].body["messages"][1]["content"]
        return [line.partition(": ")[2] for line in question.splitlines() if line.startswith(("user: ", "assistant: "))]


@dataclass
class Mesh:
    """Two Memory services over one database, as in two processes, and the vendor of their summaries."""

    acme: Caller
    other: Caller
    vendor: Vendor


async def _serve(stack: AsyncExitStack, database: Database, provider: ProviderService, model: str) -> Caller:
    served = await stack.enter_async_context(member())
    inside = await stack.enter_async_context(channel.connect(served.mesh_address, served.keyring))
    memory = MemoryService(MemoryConfig(summary_model=model), database, await PgvectorStore.open(database), inside)
    served.server.add("kfm.memory.v1.MemoryService", partial(add_MemoryServiceServicer_to_server, memory))
    served.server.add("kfm.provider.v1.ProviderService", partial(add_ProviderServiceServicer_to_server, provider))
    outside: grpc.aio.Channel = await stack.enter_async_context(await served.start())
    return Caller(MemoryServiceStub(outside), served.keyring.mint(Principal("acme", "ann")))


@pytest.fixture
async def mesh(database: Database) -> AsyncGenerator[Mesh]:
    async with AsyncExitStack() as stack:
        vendor = await stack.enter_async_context(Vendor())
        vendor.gate.set()
        openai = {"adapter": "openai_chat", "base_url": f"{vendor.url}/v1"}
        config = ProviderConfig.model_validate({"vendors": {"openai": openai}, "max_attempts": 1})
        opening = ProviderService.open(config, {"OPENAI_API_KEY": "sk-x"}, database)
        provider = await stack.enter_async_context(opening)
        acme, other = [await _serve(stack, database, provider, "openai/gpt-5-mini") for _ in range(2)]
        yield Mesh(acme, other, vendor)


async def converse(caller: Caller, first: int, last: int, session_id: str = "s") -> None:
    """Adds turns `first` to `last`, each a question and an answer."""
    for turn in range(first, last + 1):
        answer = Message(role=ROLE_ASSISTANT, parts=said(f"a{turn}").parts)
        request = pb.AppendMessagesRequest(
            session_id=session_id, messages=[said(f"q{turn}"), answer], request_id=f"{session_id}{turn}", user_id="ann"
        )
        await caller(request)


def window(**more: object) -> pb.GetWindowRequest:
    return pb.GetWindowRequest(session_id="s", **more)  # pyright: ignore[reportArgumentType] - fields by name


def turns(first: int, last: int) -> Sequence[str]:
    return [f"{role}{turn}" for turn in range(first, last + 1) for role in "qa"]


async def test_a_window_is_the_newest_turns_by_count_and_by_tokens(acme: Caller) -> None:
    assert await acme(window()) == pb.GetWindowResponse()
    await converse(acme, 1, 6)
    whole = await acme(window())
    assert (texts(whole.messages), whole.first_position) == (turns(1, 6), 1)
    newest = await acme(window(max_turns=2))
    assert (texts(newest.messages), newest.first_position) == (turns(5, 6), 9)
    each = newest.message_tokens // 4
    assert whole.message_tokens == 12 * each > 0
    by_tokens = await acme(window(max_tokens=5 * each))
    assert by_tokens == newest
    assert texts((await acme(window(max_tokens=1))).messages) == ["a6"]
    assert not (await acme(window(max_turns=1, summarize=True))).HasField("summary")  # No provider: no summary.


async def test_a_long_window_is_read_by_pages(acme: Caller) -> None:
    steps = [said("q"), *(Message(role=ROLE_ASSISTANT, parts=said(f"{n}").parts) for n in range(30))]
    await acme(pb.AppendMessagesRequest(session_id="s", messages=[said("before"), *steps], request_id="1"))
    one = await acme(window(max_turns=1))
    assert (texts(one.messages), one.first_position) == (["q", *map(str, range(30))], 2)


async def test_a_summary_covers_what_the_window_leaves_out_and_rolls_on_from_the_one_before(mesh: Mesh) -> None:
    await converse(mesh.acme, 1, 4)
    assert not (await mesh.acme(window(max_turns=2))).HasField("summary")
    first = await mesh.acme(window(max_turns=2, summarize=True))
    # Two messages more than needed, so that the next turn needs no new summary.
    assert (first.summarized_position, mesh.vendor.given(0)) == (6, turns(1, 3))
    record = first.summary
    assert record == (await mesh.acme(pb.GetRequest(namespace="session/s", record_id=summary.RECORD_ID))).record
    assert (record.kind, record.text, record.user_id) == (pb.RECORD_KIND_SUMMARY, "6 messages", "ann")
    assert (record.source.uri, record.source.title) == ("session/s", "Messages 1 to 6")
    assert record.metadata == struct(position=6, provider="openai", model="gpt-5-mini-2026-09-29")

    await converse(mesh.acme, 5, 5)
    assert (await mesh.acme(window(max_turns=2, summarize=True))).summary == record
    await converse(mesh.acme, 6, 6)
    later = await mesh.acme(window(max_turns=2, summarize=True))
    assert (later.summarized_position, later.summary.version) == (10, 2)
    assert mesh.vendor.given(1) == turns(4, 5)
    assert "6 messages" in mesh.vendor.requests[1].body["messages"][1]["content"]
    assert (await mesh.other(window(max_turns=2))).summary == later.summary
    assert len(mesh.vendor.requests) == 2


async def test_whoever_asks_at_once_and_wherever_the_model_is_asked_once(mesh: Mesh) -> None:
    await converse(mesh.acme, 1, 6)
    mesh.vendor.gate.clear()
    asked = [
        asyncio.create_task(caller(window(max_turns=most, summarize=True)))
        for most in (2, 3, 4)
        for caller in (mesh.acme, mesh.other)
    ]
    await mesh.vendor.wait_asked()
    mesh.vendor.gate.set()
    answers = await asyncio.gather(*asked)
    covered = [answer.summarized_position >= answer.first_position - 1 for answer in answers]
    assert all(covered)
    # The first call decides how far the summary goes; one that needs more extends it once.
    assert len(mesh.vendor.requests) <= 2
    assert len({tuple(mesh.vendor.given(at)) for at in range(len(mesh.vendor.requests))}) == len(mesh.vendor.requests)


async def test_without_a_model_the_window_comes_with_the_last_summary_or_none(mesh: Mesh) -> None:
    await converse(mesh.acme, 1, 4)
    mesh.vendor.fault = Fault(status=500)
    failed = await mesh.acme(window(max_turns=2, summarize=True))
    assert (texts(failed.messages), failed.HasField("summary"), failed.summarized_position) == (turns(3, 4), False, 0)
    asked = len(mesh.vendor.requests)
    assert await mesh.acme(window(max_turns=2, summarize=True)) == failed
    assert len(mesh.vendor.requests) == asked  # After a failure this service leaves the vendor alone for a while,
    mesh.vendor.fault = Fault()
    made = await mesh.other(window(max_turns=2, summarize=True))  # but the other one does not.
    assert made.summarized_position == 6
    assert (await mesh.acme(window(max_turns=2, summarize=True))) == made


async def test_a_summary_is_forgotten_with_its_session_even_one_under_way(mesh: Mesh) -> None:
    await converse(mesh.acme, 1, 4)
    mesh.vendor.gate.clear()
    asked = asyncio.create_task(mesh.acme(window(max_turns=2, summarize=True)))
    await mesh.vendor.wait_asked()
    await mesh.other(pb.ForgetRequest(namespace="session/s", everything=True))
    await converse(mesh.other, 1, 4, "again")
    request = pb.AppendMessagesRequest(session_id="s", messages=[said(text) for text in "abcdefgh"], request_id="new")
    await mesh.other(request)
    mesh.vendor.gate.set()
    assert not (await asked).HasField("summary")
    assert await mesh.acme.ids("session/s") == []
    assert not (await mesh.acme(window(max_turns=2))).HasField("summary")


async def test_a_record_of_somebody_else_in_the_summarys_place_is_no_summary(mesh: Mesh) -> None:
    await mesh.acme.write("session/s", **{summary.RECORD_ID: "tea"})
    await converse(mesh.acme, 1, 4)
    assert not (await mesh.acme(window(max_turns=2))).HasField("summary")
    made = await mesh.acme(window(max_turns=2, summarize=True))
    assert (made.summary.text, made.summary.version) == ("6 messages", 2)
