"""The step that has another personality answer, in a turn of its own."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import grpc.aio
import structlog

from agentshell.mesh import call, errors, ids
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.steps.step import HANDED_OVER, Emit
from agentshell.turn.records import turn_id_of
from agentshell.turn.state import LAST_EVENTS
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message
from kfm.error.v1 import error_pb2
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import StepRequest, TurnEvent
from kfm.turn.v1.turn_pb2 import ParentStep, StepResult
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub

_log = structlog.get_logger("agentshell.worker")

_FIRST_DELAY_SECONDS = 0.05
_MAX_DELAY_SECONDS = 2.0
_CANCEL_SECONDS = 5.0


class AgentRunner:
    """Runs a sub-turn through any gateway. The sub-turn's text is not published as this turn's."""

    def __init__(self, gateway: grpc.aio.Channel, max_depth: int) -> None:
        self._gateway = gateway
        self._max_depth = max_depth
        self._cancels: set[asyncio.Task[None]] = set()

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        depth = request.depth + 1
        if depth > self._max_depth:
            raise AgentShellError(
                error_pb2.ERROR_REASON_DEPTH_LIMIT,
                f"step {request.step.step_id} asks for a turn {depth} levels below the first, the limit is "
                f"{self._max_depth}; have fewer personalities ask one another, or raise 'runtime.max_depth'",
                metadata={"depth": str(depth), "limit": str(self._max_depth), "key": "runtime.max_depth"},
            )
        child = _SubTurn(self._gateway, _request(request, depth))
        try:
            last = await child.run()
        except BaseException as error:
            if HANDED_OVER not in error.args:
                await self._cancel(child, request.step.step_id)
            raise
        return _result(last, request)

    async def _cancel(self, child: _SubTurn, step_id: str) -> None:
        """Cancels the sub-turn within a time limit, even if this call is cancelled meanwhile."""
        task = asyncio.create_task(child.cancel(f"step {step_id} has ended"))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)
        await asyncio.shield(task)


class _SubTurn:
    """A turn that is requested once and followed to its end."""

    def __init__(self, gateway: grpc.aio.Channel, request: pb.RunTurnRequest) -> None:
        self._stub = TurnServiceStub(gateway)
        self._request = request
        self._turn_id = turn_id_of(call.tenant(), request.request_id)
        self._acknowledged = False
        self._cursor = ""

    async def run(self) -> TurnEvent:
        """Returns the last event. Resumes whenever the stream breaks, until the call's deadline."""
        delay = _FIRST_DELAY_SECONDS
        while True:
            cursor = self._cursor
            try:
                if last := await self._follow():
                    return last
            except grpc.aio.AioRpcError as failed:
                error = errors.of(failed)
                if error.reason == error_pb2.ERROR_REASON_REQUEST_ID_REUSED:
                    self._acknowledged = True  # By an earlier attempt, which had more time left.
                elif error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
            delay = _FIRST_DELAY_SECONDS if self._cursor != cursor else min(2 * delay, _MAX_DELAY_SECONDS)
            await asyncio.sleep(delay)

    async def cancel(self, message: str) -> None:
        """Cancels the turn. If no gateway can be reached, the turn ends when its time, which is the step's, is up."""
        with call.scope(call.current().principal, _CANCEL_SECONDS):
            try:
                await self._stub.CancelTurn(pb.CancelTurnRequest(turn_id=self._turn_id, message=message))
            except grpc.aio.AioRpcError as failed:
                _log.info("sub-turn not cancelled", sub_turn_id=self._turn_id, reason=errors.of(failed).name)

    async def _follow(self) -> TurnEvent | None:
        """Reads one stream. Returns the last event, or None if the stream ended before it."""
        if self._acknowledged:
            stream = self._stub.WatchTurn(pb.WatchTurnRequest(turn_id=self._turn_id, cursor=self._cursor))
        else:
            stream = self._stub.RunTurn(self._request)
        try:
            async for response in stream:
                self._acknowledged = True
                for update in response.updates:
                    if update.event.WhichOneof("event") in LAST_EVENTS:
                        return update.event
                self._cursor = response.cursor
        finally:
            stream.cancel()
        return None


def _request(request: StepRequest, depth: int) -> pb.RunTurnRequest:
    step = request.step
    asked = step.agent.input if step.agent.input.parts else request.input
    spec = pb.TurnSpec(
        session_id=f"s-{ids.digest('sub-turn', step.step_id)}",  # A session of its own.
        personality_id=step.agent.personality_id,
        input=Message(role=ROLE_USER, parts=asked.parts),
        parent=ParentStep(turn_id=request.turn_id, step_id=step.step_id, depth=depth),
        limits=request.sub_turn_limits,
    )
    if remaining := call.current().remaining():
        spec.limits.max_duration.FromTimedelta(timedelta(seconds=remaining))
    return pb.RunTurnRequest(request_id=step.step_id, turn=spec)  # Each attempt at the step follows one sub-turn.


def _result(last: TurnEvent, request: StepRequest) -> StepResult:
    if not last.HasField("turn_completed"):
        ended = last.turn_failed if last.HasField("turn_failed") else last.turn_cancelled
        raise AgentShellError(
            error_pb2.ERROR_REASON_SUB_TURN_FAILED,
            f"sub-turn {last.turn_id} of personality {request.step.agent.personality_id!r} has no answer: "
            f"{ended.failure.message}",
            metadata={"turn_id": last.turn_id},
            cause=errors.from_failure(ended.failure),
        )
    completed = last.turn_completed
    return StepResult(
        output=Message(role=ROLE_ASSISTANT, parts=completed.output.parts),
        usage=completed.usage,
        provider=request.step.agent.personality_id,
    )
