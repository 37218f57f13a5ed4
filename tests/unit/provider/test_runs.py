"""Requests repeated while they run."""

from __future__ import annotations

import asyncio

import pytest

from agentshell.mesh.errors import AgentShellError
from agentshell.provider import runs as following
from agentshell.provider.adapters.adapter import Tell
from agentshell.provider.runs import Follower, Request, Runs, Work
from kfm.content.v1.content_pb2 import Usage
from kfm.error.v1 import error_pb2
from kfm.provider.v1.provider_service_pb2 import GenerateResponse, GenerationDelta

REQUEST = Request("acme", "turn-1/step-1", b"digest")


class Model:
    """Says each word once the test provides it, and counts its calls."""

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


async def read(runs: Runs, request: Request, work: Work) -> tuple[str, GenerateResponse]:
    with runs.follow(request, work) as run:
        return await heard(run)


async def heard(run: Follower) -> tuple[str, GenerateResponse]:
    """Returns all the words and the answer."""
    text, answer = "", None
    while answer is None:
        deltas, answer = await run.read()
        text += "".join(delta.text for delta in deltas)
    return text, answer


def words(*said: str) -> list[GenerationDelta]:
    return [GenerationDelta(text=word) for word in said]


async def test_a_repeat_joins_the_run_and_hears_it_from_its_beginning() -> None:
    runs, model = Runs(), Model()
    first = asyncio.create_task(read(runs, REQUEST, model))
    model.say("a", "b")
    await model.words.join()
    second = asyncio.create_task(read(runs, REQUEST, model))
    await asyncio.sleep(0)
    model.say("c", "")

    assert await first == await second == ("abc", GenerateResponse(model="abc"))
    assert model.asked == 1


async def test_the_first_words_come_at_once_and_what_follows_on_them_comes_together_at_the_latest_with_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "PACE_SECONDS", 3600.0)
    runs, model = Runs(), Model()
    with runs.follow(REQUEST, model) as run:
        model.say("a")
        assert await run.read() == (words("a"), None)

        reading = asyncio.create_task(run.read())
        for word in "bc":
            model.say(word)
            await model.words.join()
        assert not reading.done()
        model.say("")
        assert await reading == (words("b", "c"), GenerateResponse(model="abc"))


async def test_usage_that_comes_before_the_first_words_does_not_hold_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PACE_SECONDS", 3600.0)
    runs, counted, end = Runs(), asyncio.Event(), asyncio.Event()
    usage = GenerationDelta(usage=Usage(input_tokens=1))

    async def counts(tell: Tell) -> GenerateResponse:
        tell([usage])
        await counted.wait()
        tell(words("a"))
        await end.wait()
        return GenerateResponse()

    with runs.follow(REQUEST, counts) as run:
        assert await run.read() == ([usage], None)
        counted.set()
        assert await run.read() == (words("a"), None)


async def test_what_was_held_back_comes_though_the_model_falls_silent() -> None:
    runs, model = Runs(), Model()
    with runs.follow(REQUEST, model) as run:
        for word in "abc":
            model.say(word)
            await model.words.join()
            assert await run.read() == (words(word), None)


async def test_a_run_outlives_who_began_it_and_ends_with_who_follows_it_last() -> None:
    runs, model = Runs(), Model()
    with runs.follow(REQUEST, model) as second:
        with runs.follow(REQUEST, model) as first:
            model.say("a")
            assert await first.read() == await second.read() == (words("a"), None)
        model.say("b")
        assert await second.read() == (words("b"), None)
        assert not model.cancelled.is_set()
    await asyncio.wait_for(model.cancelled.wait(), 5)

    again = Model()
    again.say("new", "")
    assert await read(runs, REQUEST, again) == ("new", GenerateResponse(model="new"))


async def test_another_thing_asked_under_the_same_id_is_refused_and_another_tenants_is_apart() -> None:
    runs, model, other = Runs(), Model(), Model()
    with runs.follow(REQUEST, model):
        with pytest.raises(AgentShellError) as caught:
            await read(runs, Request("acme", REQUEST.request_id, b"another"), model)
        assert caught.value.reason == error_pb2.ERROR_REASON_REQUEST_ID_REUSED
        other.say("mine", "")
        assert (await read(runs, Request("umbrella", REQUEST.request_id, b"x"), other))[0] == "mine"


async def test_requests_without_an_id_run_each_for_itself() -> None:
    runs, model = Runs(), Model()
    model.say("a", "", "b", "")
    nameless = Request("acme", "", b"")
    with runs.follow(nameless, model) as first:
        assert await first.read() == (words("a"), GenerateResponse(model="a"))
        assert (await read(runs, nameless, model))[0] == "b"
    assert model.asked == 2


async def test_a_failure_reaches_all_who_follow_after_what_was_said() -> None:
    runs = Runs()

    async def fails(tell: Tell) -> GenerateResponse:
        tell(words("a"))
        raise AgentShellError(error_pb2.ERROR_REASON_PROVIDER_CONNECTION, "cut")

    async def hear() -> tuple[str, str]:
        with runs.follow(REQUEST, fails) as run:
            deltas, answer = await run.read()
            assert answer is None
            with pytest.raises(AgentShellError) as caught:
                await run.read()
            return deltas[0].text, caught.value.message

    assert await asyncio.gather(hear(), hear()) == [("a", "cut")] * 2


async def test_closing_cancels_what_runs() -> None:
    runs, model = Runs(), Model()
    task = asyncio.create_task(read(runs, REQUEST, model))
    model.say("a")
    await model.words.join()
    await runs.close()
    with pytest.raises(asyncio.CancelledError):
        await task
