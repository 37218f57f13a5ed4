"""One run for each request, however often it is repeated meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentshell.mesh.errors import AgentShellError
from agentshell.tool.attempt import Attempt
from agentshell.tool.runs import MAX_WAITING_PROGRESS, Runs, Tell
from kfm.content.v1.content_pb2 import ToolResult
from kfm.error.v1 import error_pb2
from kfm.tool.v1.tool_service_pb2 import InvokeToolResponse

FIRST = Attempt("acme", "step", b"call", 1)
SECOND = Attempt("acme", "step", b"call", 2)
RESULT = InvokeToolResponse(result=ToolResult(call_id="c1"))
BOUND_SECONDS = 10


class Tool:
    """Begins, and waits until it may end."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.tell: Tell

    async def run(self, tell: Tell) -> ToolResult:
        self.begun += 1
        self.tell = tell
        tell("begun")
        try:
            await asyncio.wait_for(self.may_end.wait(), BOUND_SECONDS)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return ToolResult(call_id="c1")


async def rest(responses: AsyncIterator[InvokeToolResponse]) -> list[InvokeToolResponse]:
    return [response async for response in responses]


async def test_a_repeat_joins_the_run_which_outlives_whoever_began_it() -> None:
    runs, tool = Runs(), Tool()
    first = runs.follow(FIRST, tool.run)
    assert await anext(first) == InvokeToolResponse(progress="begun")
    repeat = asyncio.create_task(rest(runs.follow(FIRST, tool.run)))
    await asyncio.sleep(0)  # The task joins.

    await first.aclose()
    tool.tell("half done")
    tool.may_end.set()

    assert await repeat == [InvokeToolResponse(progress="half done"), RESULT]
    assert tool.begun == 1


async def test_the_run_is_cancelled_when_nobody_follows_it_and_the_next_is_a_new_one() -> None:
    runs, tool = Runs(), Tool()
    only = runs.follow(FIRST, tool.run)
    await anext(only)

    await only.aclose()

    again = runs.follow(FIRST, tool.run)
    assert await anext(again) == InvokeToolResponse(progress="begun")
    await asyncio.wait_for(tool.cancelled.wait(), BOUND_SECONDS)
    tool.may_end.set()
    assert await rest(again) == [RESULT]
    assert tool.begun == 2


async def test_a_later_attempt_takes_over_and_the_earlier_one_is_fenced() -> None:
    runs, tool = Runs(), Tool()
    first = runs.follow(FIRST, tool.run)
    await anext(first)
    second = runs.follow(SECOND, tool.run)
    await anext(second)

    for late in (first, runs.follow(FIRST, tool.run)):
        with pytest.raises(AgentShellError) as caught:
            await anext(late)
        assert caught.value.reason == error_pb2.ERROR_REASON_FENCED
    tool.may_end.set()
    assert await rest(second) == [RESULT]


async def test_a_tool_that_talks_too_much_never_waits_for_a_slow_reader() -> None:
    runs, tool = Runs(), Tool()
    slow = runs.follow(FIRST, tool.run)
    await anext(slow)

    for number in range(MAX_WAITING_PROGRESS + 10):
        tool.tell(str(number))
    tool.may_end.set()

    *progress, last = await rest(slow)
    assert [response.progress for response in progress] == [str(number) for number in range(MAX_WAITING_PROGRESS)]
    assert last == RESULT


async def test_what_a_run_ends_with_all_of_its_followers_get() -> None:
    async def fail(_tell: Tell) -> ToolResult:
        await asyncio.sleep(0)
        raise TimeoutError("late")

    runs = Runs()
    ends = await asyncio.gather(*(rest(runs.follow(FIRST, fail)) for _ in range(2)), return_exceptions=True)

    assert [str(end) for end in ends] == ["late", "late"]
