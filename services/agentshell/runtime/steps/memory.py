"""The step that searches memory."""

from __future__ import annotations

import grpc.aio

from agentshell.content import text_of
from agentshell.runtime import prompt
from agentshell.runtime.steps.sources import Sources
from agentshell.runtime.steps.step import Emit
from kfm.content.v1.content_pb2 import ROLE_TOOL, Message, Part, Passage
from kfm.memory.v1 import memory_service_pb2 as pb
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult


class MemoryRunner:
    """Searches the step's namespaces, or else the personality's knowledge. Its output is the passages found."""

    def __init__(self, memory: grpc.aio.Channel, sources: Sources, max_passages: int) -> None:
        self._memory = MemoryServiceStub(memory)
        self._sources = sources
        self._max_passages = max_passages

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        step = request.step.memory
        query = step.query or await self._query(request)
        namespaces = step.namespaces or (await self._sources.personality(request)).knowledge_namespaces
        result = StepResult(output=Message(role=ROLE_TOOL), provider="memory")
        if not query.strip() or not namespaces:
            return result
        found = await self._memory.Search(
            pb.SearchRequest(namespaces=namespaces, query=query, limit=step.limit or self._max_passages)
        )
        result.model = found.embedder
        result.output.parts.extend(_part(hit) for hit in found.hits)
        return result

    async def _query(self, request: StepRequest) -> str:
        """Returns the step's input, with the user's previous message if it refers back to that."""
        question = text_of(request.input)
        if not prompt.refers_back(question):
            return prompt.search_query(question)
        last_two = pb.ListMessagesRequest(session_id=request.header.session_id, page_size=2)
        history = await self._memory.ListMessages(last_two)
        return prompt.search_query(question, history.messages)


def _part(hit: pb.Hit) -> Part:
    record = hit.record
    return Part(
        passage=Passage(
            record_id=record.record_id,
            source_uri=record.source.uri,
            title=record.source.title,
            text=record.text,
            score=hit.score,
        )
    )
