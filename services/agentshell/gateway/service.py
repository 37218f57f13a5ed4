"""TurnService: admits, streams, lists, answers, forks and cancels turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import closing
from datetime import UTC, datetime

import grpc.aio

from agentshell.gateway import admission, cursor, fork, inputs
from agentshell.gateway.backlog import Backlog
from agentshell.gateway.feed import Feeds
from agentshell.gateway.floors import Floors
from agentshell.gateway.limits import limits_of
from agentshell.gateway.pack_cache import PackCache
from agentshell.gateway.recent import Recent
from agentshell.gateway.turn_events import TurnEvents, has_succeeded
from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from agentshell.gateway.turn_reader import TurnReader
from agentshell.log.log import Log
from agentshell.mesh import call, errors, ids, paging, telemetry, validation
from agentshell.mesh.config import RuntimeConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from agentshell.turn.records import stamp, turn_id_of
from agentshell.turn.state import LAST_EVENTS, apply, is_over
from kfm.error.v1 import error_pb2
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import InputProvided, TurnCancelRequested, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import (
    PRIORITY_NORMAL,
    TURN_STATE_REQUESTED,
    TURN_STATE_RUNNING,
    TURN_STATE_WAITING,
    ForkPoint,
    ParentStep,
    Turn,
    TurnState,
)
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceServicer

_PAGE_BYTES = 1024 * 1024  # A page ends with the item that exceeds it, and stays below gRPC's default limit of 4 MiB.
_TURN_BYTES = 2 * 1024 * 1024
_SCANNED_RECORDS = 5000  # at most, for one page of events; the token continues from there
_NEVER_CANCELLED = frozenset((TURN_STATE_REQUESTED, TURN_STATE_RUNNING, TURN_STATE_WAITING))


class TurnService(TurnServiceServicer):
    """Serves turns from the log and the index. `partitions` is the number of partitions of each topic."""

    def __init__(
        self,
        log: Log,
        index: TurnIndex,
        backlog: Backlog,
        personality: grpc.aio.Channel,
        config: RuntimeConfig,
        partitions: int,
    ) -> None:
        self._log = log
        self._events = TurnEvents(log, partitions)
        self._index = index
        self._backlog = backlog
        self._packs = PackCache(personality)
        self._floors = Floors(log)
        self._projected = Recent(lambda: log.committed(envelope.TURNS, envelope.GATEWAYS))
        self._feeds = Feeds(log)
        self._config = config

    async def RunTurn(
        self, request: pb.RunTurnRequest, context: grpc.aio.ServicerContext[pb.RunTurnRequest, pb.RunTurnResponse]
    ) -> AsyncGenerator[pb.RunTurnResponse]:
        row = await self._admit(request.request_id, request.turn)
        with closing(self._reader(row, None)) as reader:
            while updates := await reader.next():  # The first have the turn's first event: the acknowledgement.
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
        with closing(self._reader(row, resumed)) as reader:
            while updates := await reader.next():
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
        position = paging.decode(request, request.page_token, _moment, str)
        after = (position[0], position[1]) if position else None
        rows = await self._index.list(call.tenant(), request.session_id, request.states, after, limit + 1)
        if request.session_id and not rows:
            await self._check_session(request.session_id)
        response = pb.ListTurnsResponse()
        for shown, row in enumerate(rows):
            if shown == limit or response.ByteSize() >= _PAGE_BYTES:
                last = rows[shown - 1].turn
                response.next_page_token = paging.encode(request, last.create_time.ToMicroseconds(), last.turn_id)
                break
            if row.folded_offset is not None or await self._events.catch_up(row):
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
        async for stored, event in self._events.read(row, offset):
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
        turn_id, is_taken = row.turn.turn_id, not is_over(row.turn)
        cancel = TurnCancelRequested(message=request.message, principal_id=call.current().principal.principal_id)
        event = _stamped(TurnEvent(turn_cancel_requested=cancel), turn_id, row.turn.session_id)
        if request.request_id:  # So that a repeat can be recognised.
            event.header.event_id = ids.digest(event.header.event_id, request.request_id)
        offset = row.next_offset if row.turn.state in _NEVER_CANCELLED else row.turns_offset
        if is_taken:
            await self._events.append(event)
        if request.request_id:  # Its first use counts, not what has become of the turn since.
            is_taken = await self._events.has_cancel(row, event, offset, request.request_id)
        if not is_taken:
            await self._events.catch_up(row)
            state = TurnState.Name(row.turn.state)
            raise AgentShellError(
                error_pb2.ERROR_REASON_TURN_STATE,
                f"turn {turn_id} is over ({state}); there is nothing to cancel",
                metadata={"turn_id": turn_id, "state": state},
            )
        return pb.CancelTurnResponse()

    async def ProvideInput(
        self,
        request: pb.ProvideInputRequest,
        context: grpc.aio.ServicerContext[pb.ProvideInputRequest, pb.ProvideInputResponse],
    ) -> pb.ProvideInputResponse:
        row = await self._find(request.turn_id)
        answer = InputProvided(
            step_id=request.step_id, input=request.input, principal_id=call.current().principal.principal_id
        )
        refused, offset = await _refusal(row.turn, answer), row.turns_offset
        if refused is None:
            offset = row.next_offset
            event = _stamped(TurnEvent(input_provided=answer), row.turn.turn_id, row.turn.session_id)
            _check_size(event, "put large documents into memory (MemoryService.Ingest) and answer in fewer words")
            await self._events.append(event)
            await self._events.catch_up(row)  # An earlier record may have ended the wait.
            refused = await _refusal(row.turn, answer)
        is_taken = has_succeeded(row.turn, answer.step_id)
        if not is_taken or await self._events.answer(row, answer.step_id, offset) != answer:
            raise _not_taken(answer, refused)
        return pb.ProvideInputResponse()

    async def ForkTurn(
        self, request: pb.ForkTurnRequest, context: grpc.aio.ServicerContext[pb.ForkTurnRequest, pb.ForkTurnResponse]
    ) -> pb.ForkTurnResponse:
        if request.step_id and request.changes.plan.steps:
            raise errors.invalid(
                "changes.plan", "cannot be given with step_id, which keeps the plan of the shared past: leave one out"
            )
        row = await self._find(request.turn_id)
        source, past = await self._events.past(row, request.step_id)
        if source.fork.step_id and not request.step_id and not (request.changes.plan.steps or request.changes.strategy):
            raise errors.invalid("step_id", f"turn {request.turn_id} is itself a fork; name a step, or fork its source")
        event = await self._fork(request, source)
        if request.step_id:
            event.turn_requested.plan.CopyFrom(fork.past(past))
        _check_size(event, "fork from an earlier step")
        asked = pb.ForkTurnRequest(turn_id=request.turn_id, step_id=request.step_id, changes=request.changes)
        row = await self._acknowledge(request.request_id, admission.digest(asked), event)
        return pb.ForkTurnResponse(turn=row.turn)

    async def _fork(self, request: pb.ForkTurnRequest, source: TurnRequested) -> TurnEvent:
        """Returns the first event of a fork, without the shared plan."""
        spec = fork.spec(source, request.changes)
        if request.step_id:
            spec.ClearField("plan")
        _check_stated(spec, request.changes)
        _check(spec, "changes")
        event = await self._request(turn_id_of(call.tenant(), request.request_id), spec)
        requested = event.turn_requested
        requested.fork.CopyFrom(ForkPoint(turn_id=request.turn_id, step_id=request.step_id))
        if not request.changes.personality_id:  # A turn is pinned to its pack, and so are its forks.
            requested.personality_digest = source.personality_digest
            requested.knowledge_namespaces[:] = source.knowledge_namespaces
        return event

    async def _admit(self, request_id: str, spec: pb.TurnSpec) -> IndexedTurn:
        """Returns the turn, once it is acknowledged, that `request_id` created before, or a new one."""
        _check(spec, "turn")
        event = await self._request(turn_id_of(call.tenant(), request_id), spec)
        _check_size(event, "put large documents into memory (MemoryService.Ingest) and ask about them")
        return await self._acknowledge(request_id, admission.digest(spec), event)

    async def _acknowledge(self, request_id: str, digest: bytes, event: TurnEvent) -> IndexedTurn:
        tenant_id, turn_id, turn = call.tenant(), event.turn_id, Turn()
        apply(turn, event)
        # A caller from outside the mesh may name any parent, so its parent is not trusted.
        await self._backlog.admit(tenant_id, turn_id, turn.parent.turn_id if call.current().is_inside else "")
        floors = await self._floors.of(self._events.partition_of(tenant_id, turn.session_id))
        claim = IndexedTurn(tenant_id, turn, *floors, digest)
        row = await self._index.claim(claim)
        if row.request_digest not in (None, digest):
            raise errors.request_id_reused(request_id)
        if row.folded_offset is None:  # New, or claimed by a call that may have been cut off before its append.
            ack = await self._events.append(event)
            if row is claim and not ack.duplicate:
                row.turns_offset = row.folded_offset = ack.offset
            else:  # Another call's event may be the one in the log.
                row.turns_offset = min(row.turns_offset, ack.offset)
                await self._events.catch_up(row)
        return row

    async def _request(self, turn_id: str, spec: pb.TurnSpec) -> TurnEvent:
        """Returns the first event of a turn: the request, completed by the pack and the configuration."""
        _check_depth(spec.parent, self._config.max_depth)
        is_below = spec.HasField("parent")
        personality = await self._packs.get(call.tenant(), spec.personality_id)
        plan, strategy = admission.planning(spec, personality)
        requested = TurnRequested(
            input=spec.input,
            principal_id=call.current().principal.principal_id,
            personality_id=personality.personality_id,
            personality_digest=personality.digest,
            limits=limits_of(spec.limits, personality.limits, self._config, is_below=is_below),
            model=spec.model,
            plan=plan,
            knowledge_namespaces=personality.knowledge_namespaces,
            strategy=strategy,
            priority=spec.priority or PRIORITY_NORMAL,
        )
        if is_below:
            requested.parent.CopyFrom(spec.parent)
        admission.bound_waits(requested.plan, self._config)
        return _stamped(
            TurnEvent(turn_requested=requested), turn_id, spec.session_id or envelope.own_session_id(turn_id)
        )

    async def _find(self, turn_id: str) -> IndexedTurn:
        """Returns the tenant's turn as it is now, even if the index is behind the log."""
        projected = await self._projected.get()  # Read before the row, which is then at least as current.
        row = await self._index.find(call.tenant(), turn_id)
        if row is not None:
            row.projected_offset = projected.get(self._events.partition_of(row.tenant_id, row.turn.session_id), 0)
        if row is None or not await self._events.catch_up(row):
            raise AgentShellError(
                error_pb2.ERROR_REASON_TURN_NOT_FOUND,
                f"there is no turn {turn_id!r}; ListTurns lists the turns that exist",
                metadata={"turn_id": turn_id},
            )
        return row

    def _reader(self, row: IndexedTurn, resumed: cursor.Cursor | None) -> TurnReader:
        partition = self._events.partition_of(row.tenant_id, row.turn.session_id)
        return TurnReader(self._log, self._feeds, row, partition, resumed)

    async def _check_session(self, session_id: str) -> None:
        if not await self._index.list(call.tenant(), session_id, [], None, 1):
            raise AgentShellError(
                error_pb2.ERROR_REASON_SESSION_NOT_FOUND,
                f"there is no session {session_id!r}; a session begins with its first turn",
                metadata={"session_id": session_id},
            )


def _moment(micros: str) -> datetime:
    return datetime.fromtimestamp(int(micros) / 1e6, UTC)


def _check(spec: pb.TurnSpec, within: str) -> None:
    if found := [(f"{within}.{field}", description) for field, description in admission.problems(spec)]:
        in_plan = all(field.startswith(f"{within}.plan") for field, _ in found)
        raise AgentShellError(
            error_pb2.ERROR_REASON_PLAN_INVALID if in_plan else error_pb2.ERROR_REASON_INVALID_REQUEST,
            "; ".join(f"{field}: {description}" for field, description in found),
            violations=found,
        )


def _check_stated(spec: pb.TurnSpec, changes: pb.TurnSpec) -> None:
    """Checks a merged fork request by the contract's rules; the interceptor skips `changes`, which is incomplete."""
    stated = pb.TurnSpec()
    stated.CopyFrom(spec)
    stated.limits.CopyFrom(changes.limits)  # Only these: the source's may be the configuration's.
    validation.check(stated, "changes")


def _check_size(event: TurnEvent, advice: str) -> None:
    if (size := event.ByteSize()) > admission.MAX_REQUEST_BYTES:
        raise AgentShellError(
            error_pb2.ERROR_REASON_TOO_LARGE,
            f"the request takes {size} bytes, the limit is {admission.MAX_REQUEST_BYTES}; {advice}",
            metadata={"limit_bytes": str(admission.MAX_REQUEST_BYTES)},
        )


def _check_depth(parent: ParentStep, limit: int) -> None:
    if parent.depth > limit:
        raise AgentShellError(
            error_pb2.ERROR_REASON_DEPTH_LIMIT,
            f"the turn is {parent.depth} levels below the first, the limit is {limit}; "
            "have fewer personalities ask one another, or raise 'runtime.max_depth'",
            metadata={"depth": str(parent.depth), "limit": str(limit), "key": "runtime.max_depth"},
        )


async def _refusal(turn: Turn, answer: InputProvided) -> inputs.Refusal | None:
    """Checks an answer in a thread, because checking its schema may take a while."""
    return await asyncio.to_thread(inputs.refusal, turn, answer, datetime.now(UTC).replace(tzinfo=None))


def _not_taken(answer: InputProvided, refused: inputs.Refusal | None) -> AgentShellError:
    if refused is None:
        return AgentShellError(
            error_pb2.ERROR_REASON_LOG_UNAVAILABLE, "the answer is written but cannot be read yet; give it again"
        )
    if refused.field:
        return errors.invalid(refused.field, refused.message)
    return AgentShellError(refused.reason, refused.message, metadata={"step_id": answer.step_id})


def _stamped(event: TurnEvent, turn_id: str, session_id: str) -> TurnEvent:
    before = EventHeader(
        tenant_id=call.tenant(), session_id=session_id, correlation_id=turn_id, traceparent=telemetry.traceparent()
    )
    return stamp(event, turn_id, before)
