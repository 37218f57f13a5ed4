"""The step that asks a model."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import grpc.aio

from agentshell.mesh.errors import AgentShellError
from agentshell.runtime import prompt
from agentshell.runtime.steps.step import Emit
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import ListMessagesRequest, ListMessagesResponse
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.personality.v1.personality_service_pb2 import GetRequest, Personality
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub
from kfm.provider.v1.provider_service_pb2 import GenerateResponse, Generation, StreamGenerateRequest
from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceStub
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult

_PERSONALITIES_KEPT = 256


class ModelRunner:
    """Asks a model for the answer and publishes it as it grows."""

    def __init__(
        self,
        provider: grpc.aio.Channel,
        memory: grpc.aio.Channel,
        personality: grpc.aio.Channel,
        max_history_messages: int,
    ) -> None:
        self._provider = ProviderServiceStub(provider)
        self._memory = MemoryServiceStub(memory)
        self._personality = PersonalityServiceStub(personality)
        self._max_history_messages = max_history_messages
        self._personalities: OrderedDict[tuple[str, str], Personality] = OrderedDict()

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        personality, history = await asyncio.gather(self._find_personality(request), self._list_history(request))
        generation = prompt.assemble(request, personality, history.messages)
        answer = await self._generate(generation, request.step.step_id, emit)
        return StepResult(output=answer.message, usage=answer.usage, provider=answer.provider, model=answer.model)

    async def _generate(self, generation: Generation, request_id: str, emit: Emit) -> GenerateResponse:
        stream = self._provider.StreamGenerate(StreamGenerateRequest(generation=generation, request_id=request_id))
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
            raise AgentShellError(
                error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID,
                f"provider {generation.provider or 'default'!r} ended its answer to {request_id} without finishing it",
            )
        return answer

    async def _find_personality(self, request: StepRequest) -> Personality:
        key = (request.personality_id, request.personality_digest)
        if key not in self._personalities:  # A digest's content never changes.
            found = await self._personality.Get(GetRequest(personality_id=key[0], digest=key[1]))
            self._personalities[key] = found.personality
            if len(self._personalities) > _PERSONALITIES_KEPT:
                self._personalities.popitem(last=False)
        return self._personalities[key]

    async def _list_history(self, request: StepRequest) -> ListMessagesResponse:
        return await self._memory.ListMessages(
            ListMessagesRequest(session_id=request.header.session_id, page_size=self._max_history_messages)
        )
