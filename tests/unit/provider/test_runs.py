"""Requests that are repeated while they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.runs import Request, Runs, Tell
from kfm.error.v1 import error_pb2
from kfm.provider.v1.provider_service_pb2 import GenerateResponse, GenerationDelta

REQUEST = Request("acme", "turn-1/step-1", b"digest")
Said = list[GenerationDelta] | GenerateResponse


class Model:
    """Says a word for each permission, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.cancelled = asyncio.Event()
        self.words: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, tell: Tell) -> GenerateResponse:
        self.asked += 1
        text = ""
        try:
            while word := await self.words.get():
                text += word
                tell([GenerationDelta(text=word)])
                self.words.task_done()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return GenerateResponse(model=text)

    def say(self, *words: str) -> None:
        for word in words:
            self.words.put_nowait(word)


async def read(said: AsyncGenerator[Said]) -> tuple[str, GenerateResponse]:
    text = ""
    async for item in said:
        if isinstance(item, GenerateResponse):
            return text, item
        text += "".join(delta.text for delta in item)
    raise AssertionError("the run ended without an answer")


async def test_a_repeat_joins_the_run_and_hears_it_from_its_beginning() -> None:
    runs, model = Runs(), Model()
    first = asyncio.create_task(read(runs.follow(REQUEST, model)))
    model.say("a", "b")
    await model.words.join()
    second = asyncio.create_task(read(runs.follow(REQUEST, model)))
    await asyncio.sleep(0)
    model.say("c", "")

    assert await first == await second == ("abc", GenerateResponse(model="abc"))
    assert model.asked == 1


async def test_a_run_outlives_who_began_it_and_ends_with_who_follows_it_last() -> None:
    runs, model = Runs(), Model()
    async with aclosing(runs.follow(REQUEST, model)) as second:
        async with aclosing(runs.follow(REQUEST, model)) as first:
            model.say("a")
            assert await anext(first) == [GenerationDelta(text="a")]
            assert await anext(second) == [GenerationDelta(text="a")]
        model.say("b")
        assert await anext(second) == [GenerationDelta(text="b")]
        assert not model.cancelled.is_set()
    await asyncio.wait_for(model.cancelled.wait(), 5)

    again = Model()
    again.say("new", "")
    assert await read(runs.follow(REQUEST, again)) == ("new", GenerateResponse(model="new"))


async def test_another_thing_asked_under_the_same_id_is_refused_and_another_tenants_is_apart() -> None:
    runs, model, other = Runs(), Model(), Model()
    async with aclosing(runs.follow(REQUEST, model)) as said:
        model.say("a")
        await anext(said)
        with pytest.raises(AgentShellError) as caught:
            await anext(runs.follow(Request("acme", REQUEST.request_id, b"another"), model))
        assert caught.value.reason == error_pb2.ERROR_REASON_REQUEST_ID_REUSED
        other.say("mine", "")
        assert (await read(runs.follow(Request("umbrella", REQUEST.request_id, b"x"), other)))[0] == "mine"


async def test_requests_without_an_id_run_each_for_itself() -> None:
    runs, model = Runs(), Model()
    model.say("a", "", "b", "")
    nameless = Request("acme", "", b"")
    async with aclosing(runs.follow(nameless, model)) as first:
        assert await anext(first) == [GenerationDelta(text="a")]
        assert (await read(runs.follow(nameless, model)))[0] == "b"
    assert model.asked == 2


async def test_a_failure_reaches_all_who_follow_after_what_was_said() -> None:
    runs = Runs()

    async def fails(tell: Tell) -> GenerateResponse:
        tell([GenerationDelta(text="a")])
        await asyncio.sleep(0)
        raise AgentShellError(error_pb2.ERROR_REASON_PROVIDER_CONNECTION, "cut")

    async def hear() -> tuple[str, str]:
        text = ""
        try:
            async for item in runs.follow(REQUEST, fails):
                assert isinstance(item, list)
                text += item[0].text
        except AgentShellError as error:
            return text, error.message
        raise AssertionError("it did not fail")

    assert await asyncio.gather(hear(), hear()) == [("a", "cut")] * 2


async def test_closing_cancels_what_runs() -> None:
    runs, model = Runs(), Model()
    task = asyncio.create_task(read(runs.follow(REQUEST, model)))
    model.say("a")
    await model.words.join()
    await runs.close()
    with pytest.raises(asyncio.CancelledError):
        await task
