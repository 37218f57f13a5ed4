"""The step that runs a tool."""

from __future__ import annotations

import grpc.aio

from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.steps.step import Emit
from kfm.content.v1.content_pb2 import ROLE_TOOL, Message, Part
from kfm.error.v1 import error_pb2
from kfm.tool.v1.tool_service_pb2 import InvokeToolRequest
from kfm.tool.v1.tool_service_pb2_grpc import ToolServiceStub
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult


class ToolRunner:
    """Runs a tool of the turn's personality; its output is the result. What the tool says on its way is dropped."""

    def __init__(self, tool: grpc.aio.Channel) -> None:
        self._tool = ToolServiceStub(tool)

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        step = request.step
        invocation = InvokeToolRequest(
            personality_id=request.personality_id,
            personality_digest=request.personality_digest,
            call=step.tool.call,
            request_id=step.step_id,
            attempt=request.attempt,
        )
        stream = self._tool.InvokeTool(invocation)
        try:
            async for response in stream:
                if response.HasField("failure"):
                    raise errors.from_failure(response.failure)
                if response.HasField("result"):
                    output = Message(role=ROLE_TOOL, parts=[Part(tool_result=response.result)])
                    return StepResult(output=output, provider="tool")
        finally:
            stream.cancel()
        raise AgentShellError(
            error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
            f"tool {step.tool.name!r} ended without a result for {step.step_id}; another attempt may get it",
            metadata={"tool": step.tool.name},
        )
