"""The step that asks a model."""

from __future__ import annotations

import asyncio

import grpc.aio

from agentshell.content import calls_of
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime import prompt
from agentshell.runtime.steps.sources import Sources
from agentshell.runtime.steps.step import Emit
from kfm.error.v1 import error_pb2
from kfm.personality.v1.personality_service_pb2 import Personality
from kfm.provider.v1.provider_service_pb2 import GenerateResponse, Generation, StreamGenerateRequest
from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceStub
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult


class ModelRunner:
    """Asks a model for an answer, which may be tool calls, and publishes its text as it comes."""

    def __init__(self, provider: grpc.aio.Channel, sources: Sources, max_context_tokens: int) -> None:
        self._provider = ProviderServiceStub(provider)
        self._sources = sources
        self._max_context_tokens = max_context_tokens

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        step = request.step.model
        personality, history = await asyncio.gather(self._sources.personality(request), self._sources.history(request))
        tools = [] if step.no_tools else await self._sources.tools(personality, step.tools)
        generation = prompt.assemble(request, personality, history, tools, max_tokens=self._max_context_tokens)
        asked = StreamGenerateRequest(
            generation=generation, request_id=request.step.step_id, purpose=prompt.purpose_of(request)
        )
        answer = await self._generate(asked, emit)
        _check(answer, personality, generation)
        return StepResult(output=answer.message, usage=answer.usage, provider=answer.provider, model=answer.model)

    async def _generate(self, asked: StreamGenerateRequest, emit: Emit) -> GenerateResponse:
        stream = self._provider.StreamGenerate(asked)
        answer: GenerateResponse | None = None
        try:
            async for response in stream:
                if texts := [delta.text for delta in response.deltas if delta.HasField("text")]:
                    await emit(texts)
                if response.HasField("finish"):
                    answer = response.finish
        finally:
            stream.cancel()
        if answer is None:
            provider = asked.generation.provider or "default"
            raise AgentShellError(
                error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID,
                f"provider {provider!r} ended its answer to {asked.request_id} without finishing it: ask again, or "
                "use another model",
            )
        return answer


def _check(answer: GenerateResponse, personality: Personality, generation: Generation) -> None:
    """Refuses a call to a tool that the step withholds. The model may correct a call to an unknown tool."""
    withheld = set(personality.tools) - {tool.name for tool in generation.tools}
    for asked in calls_of(answer.message):
        if asked.name in withheld:
            raise AgentShellError(
                error_pb2.ERROR_REASON_TOOL_NOT_FOUND,
                f"the model asks for tool {asked.name!r}, which its step does not offer; add it to the step's tools",
                metadata={"personality_id": personality.personality_id, "tool": asked.name},
            )
