"""TurnService: admits turns, streams them, lists them, cancels them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import grpc.aio
from google.protobuf.message import DecodeError

from agentshell.gateway import admission, cursor
from agentshell.gateway.floors import Floors
from agentshell.gateway.pack_cache import PackCache
from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from agentshell.gateway.turn_reader import TurnReader
from agentshell.log.log import Log, StoredRecord, partition_of
from agentshell.mesh import call, errors, ids, paging, telemetry
from agentshell.mesh.config import RuntimeConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope, plan
from agentshell.turn.records import record_of, stamp
from agentshell.turn.state import LAST_EVENTS, apply, is_over
from kfm.error.v1 import error_pb2
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import TurnCancelRequested, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import Turn, TurnState
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceServicer

_READ_RECORDS = 500
_PAGE_BYTES = 1024 * 1024  # A page ends with the item that passes it: below the 4 MiB that gRPC takes by default.
_TURN_BYTES = 2 * 1024 * 1024
_SCANNED_RECORDS = 5000  # at the most for one page of events; the token goes on from there


class TurnService(TurnServiceServicer):
    """Serves turns from the log and the index; `partitions` is how many each topic has."""

    def __init__(
        self, log: Log, index: TurnIndex, personality: grpc.aio.Channel, config: RuntimeConfig, partitions: int
    ) -> None:
        self._log = log
        self._index = index
        self._packs = PackCache(personality)
        self._floors = Floors(log)
        self._config = config
        self._partitions = partitions

    async def RunTurn(
        self, request: pb.RunTurnRequest, context: grpc.aio.ServicerContext[pb.RunTurnRequest, pb.RunTurnResponse]
    ) -> AsyncGenerator[pb.RunTurnResponse]:
        row = await self._admit(request.request_id, request.turn)
        reader = self._reader(row, None)
        yield pb.RunTurnResponse(
            turn_id=row.turn.turn_id, session_id=row.turn.session_id, cursor=reader.cursor.encode()
        )
        async for updates in reader.batches():
            yield pb.RunTurnResponse(
                turn_id=row.turn.turn_id,
                session_id=row.turn.session_id,
                updates=updates,
                cursor=reader.cursor.encode(),
            )

    async def CreateTurn(
        self,
        request: pb.CreateTurnRequest,
        context: grpc.aio.ServicerContext[pb.CreateTurnRequest, pb.CreateTurnResponse],
    ) -> pb.CreateTurnResponse:
        row = await self._admit(request.request_id, request.turn)
        return pb.CreateTurnResponse(turn=row.turn)

    async def WatchTurn(
        self,
        request: pb.WatchTurnRequest,
        context: grpc.aio.ServicerContext[pb.WatchTurnRequest, pb.WatchTurnResponse],
    ) -> AsyncGenerator[pb.WatchTurnResponse]:
        row = await self._find(request.turn_id)
        try:
            resumed = cursor.decode(request.cursor, request.turn_id) if request.cursor else None
        except ValueError as error:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CURSOR_INVALID, str(error), violations=[("cursor", str(error))]
            ) from None
        reader = self._reader(row, resumed)
        async for updates in reader.batches():
            yield pb.WatchTurnResponse(updates=updates, cursor=reader.cursor.encode())

    async def GetTurn(
        self, request: pb.GetTurnRequest, context: grpc.aio.ServicerContext[pb.GetTurnRequest, pb.GetTurnResponse]
    ) -> pb.GetTurnResponse:
        turn = (await self._find(request.turn_id)).turn
        if turn.ByteSize() > _TURN_BYTES:
            for step in turn.plan.steps:
                step.result.ClearField("output")
        return pb.GetTurnResponse(turn=turn)

    async def ListTurns(
        self,
        request: pb.ListTurnsRequest,
        context: grpc.aio.ServicerContext[pb.ListTurnsRequest, pb.ListTurnsResponse],
    ) -> pb.ListTurnsResponse:
        limit = paging.page_size(request.page_size, default=50, most=500)
        position = paging.decode(request, request.page_token, int, str)
        after = (datetime.fromtimestamp(position[0] / 1e6, UTC), position[1]) if position else None
        rows = await self._index.list(call.tenant(), request.session_id, request.states, after, limit + 1)
        if request.session_id and not rows:
            await self._check_session(request.session_id)
        response = pb.ListTurnsResponse()
        for shown, row in enumerate(rows):
            if shown == limit or response.ByteSize() >= _PAGE_BYTES:
                last = rows[shown - 1].turn
                response.next_page_token = paging.encode(request, last.create_time.ToMicroseconds(), last.turn_id)
                break
            if row.folded_offset is not None or await self._catch_up(row):
                row.turn.ClearField("plan")
                response.turns.append(row.turn)
        return response

    async def ListTurnEvents(
        self,
        request: pb.ListTurnEventsRequest,
        context: grpc.aio.ServicerContext[pb.ListTurnEventsRequest, pb.ListTurnEventsResponse],
    ) -> pb.ListTurnEventsResponse:
        limit = paging.page_size(request.page_size, default=100, most=1000)
        row = await self._find(request.turn_id)
        position = paging.decode(request, request.page_token, int)
        offset = position[0] if position else row.turns_offset
        response, end = pb.ListTurnEventsResponse(), offset + _SCANNED_RECORDS
        async for stored, event in self._events(row, offset):
            recorded = response.events.add(event=event, offset=stored.offset)
            recorded.append_time.FromDatetime(stored.append_time)
            if event.WhichOneof("event") in LAST_EVENTS:
                break
            if len(response.events) == limit or stored.offset >= end or response.ByteSize() >= _PAGE_BYTES:
                response.next_page_token = paging.encode(request, stored.offset + 1)
                break
        return response

    async def CancelTurn(
        self,
        request: pb.CancelTurnRequest,
        context: grpc.aio.ServicerContext[pb.CancelTurnRequest, pb.CancelTurnResponse],
    ) -> pb.CancelTurnResponse:
        row = await self._find(request.turn_id)
        turn = row.turn
        if is_over(turn):
            state = TurnState.Name(turn.state)
            raise AgentShellError(
                error_pb2.ERROR_REASON_TURN_STATE,
                f"turn {turn.turn_id} is over ({state}); there is nothing to cancel",
                metadata={"turn_id": turn.turn_id, "state": state},
            )
        principal = call.current().principal
        cancel = TurnCancelRequested(message=request.message, principal_id=principal.principal_id)
        await self._append(_stamped(TurnEvent(turn_cancel_requested=cancel), turn.turn_id, turn.session_id))
        return pb.CancelTurnResponse()

    async def ProvideInput(
        self,
        request: pb.ProvideInputRequest,
        context: grpc.aio.ServicerContext[pb.ProvideInputRequest, pb.ProvideInputResponse],
    ) -> pb.ProvideInputResponse:
        raise errors.not_implemented("TurnService.ProvideInput")

    async def ForkTurn(
        self, request: pb.ForkTurnRequest, context: grpc.aio.ServicerContext[pb.ForkTurnRequest, pb.ForkTurnResponse]
    ) -> pb.ForkTurnResponse:
        raise errors.not_implemented("TurnService.ForkTurn")

    async def _admit(self, request_id: str, spec: pb.TurnSpec) -> IndexedTurn:
        """Returns the turn once it is acknowledged: the one that `request_id` made before, or a new one."""
        _check(spec)
        tenant_id, digest = call.tenant(), admission.digest(spec)
        turn_id = ids.digest("turn", tenant_id, request_id) if request_id else ids.ulid()
        event, turn = await self._request(turn_id, spec), Turn()
        apply(turn, event)
        floors = await self._floors.of(self._partition(tenant_id, turn.session_id))
        row = await self._index.claim(IndexedTurn(tenant_id, turn, *floors, digest))
        if row.request_digest not in (None, digest):
            raise AgentShellError(
                error_pb2.ERROR_REASON_REQUEST_ID_REUSED,
                f"request_id {request_id!r} was used for another turn; use a new one for each turn",
                metadata={"request_id": request_id, "turn_id": turn_id},
            )
        if row.folded_offset is None:  # New, or claimed by a call that may have been cut off before it appended.
            row.folded_offset = await self._append(event)
        return row

    async def _request(self, turn_id: str, spec: pb.TurnSpec) -> TurnEvent:
        personality = await self._packs.get(call.tenant(), spec.personality_id)
        requested = TurnRequested(
            input=spec.input,
            principal_id=call.current().principal.principal_id,
            personality_id=personality.personality_id,
            personality_digest=personality.digest,
            limits=admission.limits(spec.limits, personality.limits, self._config),
            model=spec.model,
            plan=spec.plan,
            knowledge_namespaces=personality.knowledge_namespaces,
        )
        event = _stamped(TurnEvent(turn_requested=requested), turn_id, spec.session_id or f"s-{turn_id}")
        if event.ByteSize() > admission.MAX_REQUEST_BYTES:
            raise AgentShellError(
                error_pb2.ERROR_REASON_TOO_LARGE,
                f"the turn takes {event.ByteSize()} bytes, the limit is {admission.MAX_REQUEST_BYTES}; "
                "put large documents into memory (MemoryService.Ingest) and ask about them",
                metadata={"limit_bytes": str(admission.MAX_REQUEST_BYTES)},
            )
        return event

    async def _append(self, event: TurnEvent) -> int:
        [ack] = await self._log.append(envelope.TURNS, [record_of(event)])
        return ack.offset

    async def _find(self, turn_id: str) -> IndexedTurn:
        """Returns the tenant's turn as it is now: the index may be behind the log, which a caller would notice."""
        row = await self._index.find(call.tenant(), turn_id)
        if row is None or not await self._catch_up(row):
            raise AgentShellError(
                error_pb2.ERROR_REASON_TURN_NOT_FOUND,
                f"there is no turn {turn_id!r}; ListTurns lists those there are",
                metadata={"turn_id": turn_id},
            )
        return row

    async def _catch_up(self, row: IndexedTurn) -> bool:
        """Folds what the index has not seen yet. Returns whether there is a turn: a claim may have come to nothing."""
        if not is_over(row.turn):
            offset = row.turns_offset if row.folded_offset is None else row.folded_offset + 1
            async for stored, event in self._events(row, offset):
                apply(row.turn, event)
                row.folded_offset = stored.offset
        return row.folded_offset is not None

    def _reader(self, row: IndexedTurn, resumed: cursor.Cursor | None) -> TurnReader:
        return TurnReader(self._log, row, self._partition(row.tenant_id, row.turn.session_id), resumed)

    async def _check_session(self, session_id: str) -> None:
        if not await self._index.list(call.tenant(), session_id, [], None, 1):
            raise AgentShellError(
                error_pb2.ERROR_REASON_SESSION_NOT_FOUND,
                f"there is no session {session_id!r}; a session begins with its first turn",
                metadata={"session_id": session_id},
            )

    async def _events(self, row: IndexedTurn, offset: int) -> AsyncGenerator[tuple[StoredRecord, TurnEvent]]:
        """Yields the turn's events from `offset` to the log's end."""
        key = envelope.session_key(row.tenant_id, row.turn.session_id)
        partition = self._partition(row.tenant_id, row.turn.session_id)
        while records := await self._log.read(envelope.TURNS, partition, offset, _READ_RECORDS, 0.0):
            for stored in records:
                if stored.record.key != key:
                    continue
                with contextlib.suppress(DecodeError):  # The manager buries what cannot be decoded.
                    event = TurnEvent.FromString(stored.record.payload)
                    if event.turn_id == row.turn.turn_id:
                        yield stored, event
            offset = records[-1].offset + 1

    def _partition(self, tenant_id: str, session_id: str) -> int:
        return partition_of(envelope.session_key(tenant_id, session_id), self._partitions)


def _check(spec: pb.TurnSpec) -> None:
    if found := admission.problems(spec):
        in_plan = all(field.startswith("turn.plan") for field, _ in found)
        raise AgentShellError(
            error_pb2.ERROR_REASON_PLAN_INVALID if in_plan else error_pb2.ERROR_REASON_INVALID_REQUEST,
            "; ".join(f"{field}: {description}" for field, description in found),
            violations=found,
        )
    if missing := plan.unsupported(spec.plan):
        raise errors.not_implemented(missing)


def _stamped(event: TurnEvent, turn_id: str, session_id: str) -> TurnEvent:
    before = EventHeader(
        tenant_id=call.tenant(), session_id=session_id, correlation_id=turn_id, traceparent=telemetry.traceparent()
    )
    return stamp(event, turn_id, before)
