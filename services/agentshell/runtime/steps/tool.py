"""The step that runs a tool."""

from __future__ import annotations

import grpc.aio

from agentshell.content import fill, plain_of, text_of
from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.steps.step import Emit, StepRunner
from kfm.content.v1.content_pb2 import ROLE_TOOL, Message, Part, ToolResult
from kfm.error.v1 import error_pb2
from kfm.tool.v1.tool_service_pb2 import InvokeToolRequest, InvokeToolResponse
from kfm.tool.v1.tool_service_pb2_grpc import ToolServiceStub
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import AgentStep, StepResult


class ToolRunner:
    """Runs a tool of the turn's personality. Its output is the result; progress messages are dropped.

    A tool that is another personality runs a sub-turn, like an agent step.
    """

    def __init__(self, tool: grpc.aio.Channel, agent: StepRunner) -> None:
        self._tool = ToolServiceStub(tool)
        self._agent = agent

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        step = request.step
        invocation = InvokeToolRequest(
            personality_id=request.personality_id,
            personality_digest=request.personality_digest,
            call=step.tool.call,
            request_id=step.step_id,
            attempt=request.attempt,
        )
        last = await self._last(invocation)
        if last.HasField("agent"):
            return await self._ask(request, last.agent, emit)
        return StepResult(output=_output(last.result), provider="tool")

    async def _last(self, invocation: InvokeToolRequest) -> InvokeToolResponse:
        """Returns the response that ends a call. Raises its failure."""
        stream = self._tool.InvokeTool(invocation)
        try:
            async for response in stream:
                if response.HasField("failure"):
                    raise errors.from_failure(response.failure)
                if not response.HasField("progress"):
                    return response
        finally:
            stream.cancel()
        name = invocation.call.name
        raise AgentShellError(
            error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
            f"tool {name!r} ended without a result for {invocation.request_id}; another attempt may get it",
            metadata={"tool": name},
        )

    async def _ask(self, request: StepRequest, agent: AgentStep, emit: Emit) -> StepResult:
        asked = StepRequest()
        asked.CopyFrom(request)
        asked.step.agent.CopyFrom(agent)
        result = await self._agent.run(asked, emit)
        answer = text_of(result.output) or plain_of(result.output)
        told = ToolResult(call_id=request.step.tool.call.call_id)
        fill(told.output, {"personality": agent.personality_id, "answer": answer})
        return StepResult(output=_output(told), usage=result.usage, provider=agent.personality_id)


def _output(result: ToolResult) -> Message:
    return Message(role=ROLE_TOOL, parts=[Part(tool_result=result)])
