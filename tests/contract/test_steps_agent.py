"""Steps that another personality answers; the gateway here plays the real one, faults included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import grpc.aio
import pytest
from tests.contract.serving import member
from tests.contract.steps import ANN, request_of, run, user

from agentshell.mesh import call, channel
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.steps.agent import AgentRunner
from agentshell.runtime.steps.step import HANDED_OVER
from agentshell.turn.records import turn_id_of
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_TOOL, Message, Usage
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import Failure
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import (
    TurnCancelled,
    TurnCompleted,
    TurnEvent,
    TurnFailed,
    TurnRequested,
    TurnUpdate,
)
from kfm.turn.v1.turn_pb2 import AgentStep, ParentStep, Step
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceServicer, add_TurnServiceServicer_to_server

CHILD = turn_id_of("acme", "T/ask")
BOUND_SECONDS = 10
USAGE = Usage(input_tokens=3)
ANSWER = Message(role=ROLE_TOOL, parts=user("Done.").parts)
COMPLETED = TurnEvent(turn_id=CHILD, turn_completed=TurnCompleted(output=ANSWER, usage=USAGE))
BEGUN = TurnEvent(turn_id=CHILD, turn_requested=TurnRequested())
FAILURE = Failure(reason=error_pb2.ERROR_REASON_STEP_LIMIT, message="too many steps")
UNAVAILABLE = AgentShellError(error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE, "the server is draining")

# What a stream does: sends an event, fails, waits forever (None), or ends.
Act = TurnEvent | AgentShellError | None


class Gateway(TurnServiceServicer):
    """Plays one script for each stream requested, in order; keeps the requests."""

    def __init__(self) -> None:
        self.streams: list[Sequence[Act]] = []
        self.runs: list[pb.RunTurnRequest] = []
        self.watches: list[pb.WatchTurnRequest] = []
        self.cancelled: asyncio.Queue[pb.CancelTurnRequest] = asyncio.Queue()
        self.waiting = asyncio.Event()
        self.tenants: set[str] = set()
        self._sent = 0

    async def RunTurn(self, request: pb.RunTurnRequest, context: Any) -> AsyncGenerator[pb.RunTurnResponse]:  # noqa: N802 - an RPC's name
        self.runs.append(request)
        self.tenants.add(call.tenant())
        async for event in self._play():
            yield pb.RunTurnResponse(turn_id=CHILD, updates=[TurnUpdate(event=event)], cursor=str(self._sent))

    async def WatchTurn(self, request: pb.WatchTurnRequest, context: Any) -> AsyncGenerator[pb.WatchTurnResponse]:  # noqa: N802 - an RPC's name
        self.watches.append(request)
        async for event in self._play():
            yield pb.WatchTurnResponse(updates=[TurnUpdate(event=event)], cursor=str(self._sent))

    async def CancelTurn(self, request: pb.CancelTurnRequest, context: Any) -> pb.CancelTurnResponse:  # noqa: N802 - an RPC's name
        self.cancelled.put_nowait(request)
        return pb.CancelTurnResponse()

    async def _play(self) -> AsyncGenerator[TurnEvent]:
        for act in self.streams.pop(0):
            if act is None:
                self.waiting.set()
                await asyncio.Event().wait()
            elif isinstance(act, AgentShellError):
                raise act
            else:
                self._sent += 1
                yield act


class Subject:
    """The runner and the gateway that it calls."""

    def __init__(self, gateway: Gateway, inside: grpc.aio.Channel) -> None:
        self.gateway = gateway
        self.run: Callable[..., Any] = partial(run, AgentRunner(inside, max_depth=2))


@pytest.fixture
async def subject() -> AsyncIterator[Subject]:
    gateway = Gateway()  # pyright: ignore[reportAbstractUsage] - the other RPCs are not for steps
    async with member() as served, channel.connect(served.mesh_address, served.keyring) as inside:
        served.server.add("kfm.turn.v1.TurnService", partial(add_TurnServiceServicer_to_server, gateway))
        async with await served.start():
            yield Subject(gateway, inside)


def asking(**agent: Any) -> Any:
    return request_of(Step(step_id="T/ask", agent=AgentStep(personality_id="critic", **agent)))


async def test_the_sub_turns_answer_is_the_steps_and_it_is_asked_under_the_steps_name(subject: Subject) -> None:
    subject.gateway.streams = [[BEGUN, COMPLETED]]
    said: list[str] = []
    asking_it = asking()
    asking_it.sub_turn_limits.max_tokens = 30
    result = await subject.run(asking_it, said)

    assert (result.output.role, list(result.output.parts), result.usage) == (ROLE_ASSISTANT, list(ANSWER.parts), USAGE)
    assert (result.provider, said, subject.gateway.tenants) == ("critic", [], {ANN.tenant_id})
    [asked] = subject.gateway.runs
    assert (asked.request_id, asked.turn.personality_id, asked.turn.input) == (
        "T/ask",
        "critic",
        user("What is 2 + 2?"),
    )
    assert asked.turn.parent == ParentStep(turn_id="T", step_id="T/ask", depth=1)
    assert 0 < asked.turn.limits.max_duration.ToTimedelta().total_seconds() <= 20
    assert asked.turn.limits.max_tokens == 30


async def test_each_attempt_asks_in_the_same_session_and_another_step_in_another(subject: Subject) -> None:
    subject.gateway.streams = [[COMPLETED]] * 3
    other = asking(input=user("Is it right?"))
    other.step.step_id = "T/other"
    for request in (asking(), asking(), other):
        await subject.run(request)
    first, again, another = (asked.turn for asked in subject.gateway.runs)
    assert first.session_id == again.session_id != another.session_id
    assert another.input == user("Is it right?")


async def test_a_stream_that_breaks_is_resumed_from_its_cursor(subject: Subject) -> None:
    subject.gateway.streams = [[BEGUN, UNAVAILABLE], [], [BEGUN, UNAVAILABLE], [COMPLETED]]
    assert (await subject.run(asking())).usage == USAGE
    assert len(subject.gateway.runs) == 1
    assert [(watch.turn_id, watch.cursor) for watch in subject.gateway.watches] == [
        (CHILD, "1"),
        (CHILD, "1"),
        (CHILD, "2"),
    ]


async def test_an_attempt_after_one_with_more_time_left_follows_the_same_sub_turn(subject: Subject) -> None:
    reused = AgentShellError(error_pb2.ERROR_REASON_REQUEST_ID_REUSED, "used", metadata={"turn_id": CHILD})
    subject.gateway.streams = [[reused], [COMPLETED]]
    assert (await subject.run(asking())).usage == USAGE
    assert [(watch.turn_id, watch.cursor) for watch in subject.gateway.watches] == [(CHILD, "")]


@pytest.mark.parametrize(
    "end",
    [
        TurnEvent(turn_id=CHILD, turn_failed=TurnFailed(failure=FAILURE)),
        TurnEvent(turn_id=CHILD, turn_cancelled=TurnCancelled(failure=FAILURE)),
    ],
    ids=["failed", "cancelled"],
)
async def test_a_sub_turn_without_an_answer_is_the_steps_failure_with_its_cause(
    subject: Subject, end: TurnEvent
) -> None:
    subject.gateway.streams = [[BEGUN, end]]
    with pytest.raises(AgentShellError) as caught:
        await subject.run(asking())

    error, cause = caught.value, caught.value.__cause__
    assert (error.reason, error.metadata) == (error_pb2.ERROR_REASON_SUB_TURN_FAILED, {"turn_id": CHILD})
    assert error.message == f"sub-turn {CHILD} of personality 'critic' has no answer: too many steps"
    assert isinstance(cause, AgentShellError)
    assert cause.reason == error_pb2.ERROR_REASON_STEP_LIMIT


async def test_turns_that_ask_for_turns_end_at_the_limit(subject: Subject) -> None:
    request = asking()
    request.depth = 1
    subject.gateway.streams = [[COMPLETED]]
    await subject.run(request)
    request.depth = 2
    with pytest.raises(AgentShellError) as caught:
        await subject.run(request)
    assert (caught.value.name, caught.value.metadata["limit"]) == ("DEPTH_LIMIT", "2")
    assert [asked.turn.parent.depth for asked in subject.gateway.runs] == [2]


async def test_what_the_gateway_refuses_is_the_steps_failure_at_once(subject: Subject) -> None:
    subject.gateway.streams = [[AgentShellError(error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND, "no critic")]]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await subject.run(asking())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_end_of_a_step_is_the_end_of_its_sub_turn(subject: Subject) -> None:
    subject.gateway.streams = [[BEGUN, None]]
    task = asyncio.create_task(subject.run(asking()))
    await asyncio.wait_for(subject.gateway.waiting.wait(), BOUND_SECONDS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert subject.gateway.cancelled.get_nowait() == pb.CancelTurnRequest(turn_id=CHILD, message="step T/ask has ended")


async def test_a_sub_turn_ends_at_the_steps_deadline(subject: Subject) -> None:
    subject.gateway.streams = [[BEGUN, None]]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await subject.run(asking(), seconds=1.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert subject.gateway.cancelled.get_nowait().turn_id == CHILD


async def test_a_step_that_another_worker_goes_on_with_leaves_its_sub_turn_alone(subject: Subject) -> None:
    subject.gateway.streams = [[BEGUN, None]]
    task = asyncio.create_task(subject.run(asking()))
    await asyncio.wait_for(subject.gateway.waiting.wait(), BOUND_SECONDS)
    task.cancel(HANDED_OVER)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert subject.gateway.cancelled.empty()
