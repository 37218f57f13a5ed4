"""AdminService: dead letters and the turn index, for the operators of the mesh."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import grpc.aio

from agentshell.gateway.rebuild import rebuild
from agentshell.gateway.turn_index import TurnIndex
from agentshell.log import dead_letter
from agentshell.log.log import Log
from agentshell.mesh import call, paging
from kfm.admin.v1 import admin_service_pb2 as pb
from kfm.admin.v1.admin_service_pb2_grpc import AdminServiceServicer


class AdminService(AdminServiceServicer):
    """Serves operators only. `topics` are the topics that have dead letters."""

    def __init__(self, log: Log, index: TurnIndex, topics: Sequence[str]) -> None:
        self._log = log
        self._index = index
        self._topics = sorted(topics)

    async def ListDeadLetters(
        self,
        request: pb.ListDeadLettersRequest,
        context: grpc.aio.ServicerContext[pb.ListDeadLettersRequest, pb.ListDeadLettersResponse],
    ) -> pb.ListDeadLettersResponse:
        call.require_operator()
        limit = paging.page_size(request.page_size, default=100, most=1000)  # of up to about 2 KiB each
        start = paging.decode(request, request.page_token, str, int, int) or ["", 0, 0]
        response = pb.ListDeadLettersResponse()
        topics = [request.topic] if request.topic else self._topics
        async with aclosing(self._pending(topics, *start)) as letters:
            async for letter in letters:
                response.dead_letters.append(letter)
                if len(response.dead_letters) == limit:
                    topic, partition, offset = dead_letter.place(letter.dead_letter_id)
                    response.next_page_token = paging.encode(request, topic, partition, offset + 1)
                    break
        return response

    async def GetDeadLetter(
        self,
        request: pb.GetDeadLetterRequest,
        context: grpc.aio.ServicerContext[pb.GetDeadLetterRequest, pb.GetDeadLetterResponse],
    ) -> pb.GetDeadLetterResponse:
        call.require_operator()
        letter, record = await dead_letter.find(self._log, request.dead_letter_id)
        letter.headers.update(record.headers)
        letter.payload = record.payload
        return pb.GetDeadLetterResponse(dead_letter=letter)

    async def ReplayDeadLetter(
        self,
        request: pb.ReplayDeadLetterRequest,
        context: grpc.aio.ServicerContext[pb.ReplayDeadLetterRequest, pb.ReplayDeadLetterResponse],
    ) -> pb.ReplayDeadLetterResponse:
        call.require_operator()
        settlement = await dead_letter.settle(self._log, request.dead_letter_id, pb.SETTLEMENT_REPLAYED)
        return pb.ReplayDeadLetterResponse(settlement=settlement)

    async def DropDeadLetter(
        self,
        request: pb.DropDeadLetterRequest,
        context: grpc.aio.ServicerContext[pb.DropDeadLetterRequest, pb.DropDeadLetterResponse],
    ) -> pb.DropDeadLetterResponse:
        call.require_operator()
        settlement = await dead_letter.settle(self._log, request.dead_letter_id, pb.SETTLEMENT_DROPPED)
        return pb.DropDeadLetterResponse(settlement=settlement)

    async def RebuildTurns(
        self,
        request: pb.RebuildTurnsRequest,
        context: grpc.aio.ServicerContext[pb.RebuildTurnsRequest, pb.RebuildTurnsResponse],
    ) -> pb.RebuildTurnsResponse:
        call.require_operator()
        return pb.RebuildTurnsResponse(turn_count=await rebuild(self._log, self._index))

    async def _pending(
        self, topics: Sequence[str], first_topic: str, first_partition: int, first_offset: int
    ) -> AsyncGenerator[pb.DeadLetter]:
        """Yields the unsettled dead letters of the topics, from the given position on."""
        first = (first_topic, first_partition)
        for topic in topics:
            for partition in range(len(await self._log.end_offsets(topic + dead_letter.SUFFIX))):
                if (topic, partition) < first:
                    continue
                offset = first_offset if (topic, partition) == first else 0
                async with aclosing(dead_letter.pending(self._log, topic, partition, offset)) as letters:
                    async for letter in letters:
                        yield letter
