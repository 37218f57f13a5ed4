"""The client against a real server that goes away: it misses nothing, repeats nothing, and ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from itertools import product
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest

from kfm.content.v1.content_pb2 import Message, Part, Text
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_pb2 import ModelStep, Plan, Step, Turn
from xenocomm import Client, XenocommError

_T = TypeVar("_T")

_KEY = "ask_test"
_NEVER = 1000
_PLAN = Plan(steps=[Step(step_id="t1/answer", model=ModelStep())])
_OUTPUT = Message(parts=[Part(text=Text(text="one two three four"))])


def _event(event: e.TurnEvent) -> e.TurnUpdate:
    event.turn_id = "t1"
    event.header.CopyFrom(EventHeader(session_id="s1"))
    return e.TurnUpdate(event=event)


def _delta(index: int, *texts: str) -> e.TurnUpdate:
    return e.TurnUpdate(delta=e.OutputDelta(turn_id="t1", step_id="t1/answer", run_id="r1", index=index, texts=texts))


_BATCHES: Sequence[Sequence[e.TurnUpdate]] = (
    [
        _event(e.TurnEvent(turn_requested=e.TurnRequested())),
        _event(e.TurnEvent(plan_created=e.PlanCreated(plan=_PLAN))),
    ],
    [_delta(0, "one ", "two ")],
    [_delta(2, "three "), _delta(3, "four")],
    [_event(e.TurnEvent(turn_completed=e.TurnCompleted(output=_OUTPUT)))],
)
_UPDATES = [update for batch in _BATCHES for update in batch]


class BreakingTurnService:
    """Serves one turn in batches. Each call breaks with UNAVAILABLE after the number of responses in the next cut."""

    def __init__(self, *cuts: int) -> None:
        self._cuts = list(cuts)
        self.calls: list[str] = []
        self.request_ids: set[str] = set()
        self.credentials: set[str] = set()
        self.hang = False
        self.refuses = False
        self.ended = asyncio.Event()

    async def run(
        self, request: pb.RunTurnRequest, context: grpc.aio.ServicerContext[pb.RunTurnRequest, pb.RunTurnResponse]
    ) -> AsyncGenerator[pb.RunTurnResponse]:
        self.request_ids.add(request.request_id)
        responses = [pb.RunTurnResponse(turn_id="t1", session_id="s1", cursor="0")]
        for cursor, updates in enumerate(_BATCHES, 1):
            responses.append(pb.RunTurnResponse(turn_id="t1", session_id="s1", updates=updates, cursor=str(cursor)))
        async for response in self._serve("run", responses, context):
            yield response

    async def watch(
        self, request: pb.WatchTurnRequest, context: grpc.aio.ServicerContext[pb.WatchTurnRequest, pb.WatchTurnResponse]
    ) -> AsyncGenerator[pb.WatchTurnResponse]:
        seen = int(request.cursor or "0")
        responses = [
            pb.WatchTurnResponse(updates=updates, cursor=str(cursor))
            for cursor, updates in enumerate(_BATCHES[seen:], seen + 1)
        ]
        async for response in self._serve(f"watch {request.cursor}", responses, context):
            yield response

    async def list(
        self, request: pb.ListTurnsRequest, context: grpc.aio.ServicerContext[pb.ListTurnsRequest, pb.ListTurnsResponse]
    ) -> pb.ListTurnsResponse:
        self.calls.append(f"list {request.session_id} {request.page_token}")
        if self._cuts.pop(0):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        first = int(request.page_token or "0")
        token = str(first + 2) if first < 2 else ""
        return pb.ListTurnsResponse(
            turns=[Turn(turn_id=str(first)), Turn(turn_id=str(first + 1))], next_page_token=token
        )

    async def cancel(
        self,
        request: pb.CancelTurnRequest,
        context: grpc.aio.ServicerContext[pb.CancelTurnRequest, pb.CancelTurnResponse],
    ) -> pb.CancelTurnResponse:
        self.calls.append("cancel")
        self.request_ids.add(request.request_id)
        if self._cuts.pop(0):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return pb.CancelTurnResponse()

    def methods(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {
            "RunTurn": grpc.unary_stream_rpc_method_handler(
                self.run, pb.RunTurnRequest.FromString, pb.RunTurnResponse.SerializeToString
            ),
            "WatchTurn": grpc.unary_stream_rpc_method_handler(
                self.watch, pb.WatchTurnRequest.FromString, pb.WatchTurnResponse.SerializeToString
            ),
            "ListTurns": grpc.unary_unary_rpc_method_handler(
                self.list, pb.ListTurnsRequest.FromString, pb.ListTurnsResponse.SerializeToString
            ),
            "CancelTurn": grpc.unary_unary_rpc_method_handler(
                self.cancel, pb.CancelTurnRequest.FromString, pb.CancelTurnResponse.SerializeToString
            ),
        }

    async def _serve(
        self, call: str, responses: list[_T], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[_T]:
        self.calls.append(call)
        self.credentials |= {str(value) for key, value in context.invocation_metadata() or () if key == "authorization"}
        if self.refuses:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")
        cut = self._cuts.pop(0) if self._cuts else _NEVER
        try:
            for number, response in enumerate(responses):
                if number == cut:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
                yield response
            if self.hang:
                await asyncio.Event().wait()
            if cut == len(responses):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def serving(service: BreakingTurnService, address: str = "127.0.0.1:0") -> AsyncGenerator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    methods = grpc.method_handlers_generic_handler("kfm.turn.v1.TurnService", service.methods())
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def from_far_away(address: str, seconds: float) -> AsyncGenerator[str]:
    """Yields the address of a relay to a server that delays the first bytes."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        there = await asyncio.open_connection(*address.split(":"))
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def read_all(client: Client) -> list[e.TurnUpdate]:
    return [update async for update in client.run("count to four")]


@pytest.mark.parametrize(("first", "second"), list(product(range(len(_BATCHES) + 2), range(3))))
async def test_a_stream_that_breaks_anywhere_loses_and_repeats_nothing(first: int, second: int) -> None:
    service = BreakingTurnService(first, second)
    async with serving(service) as address, Client.connect(address, _KEY) as client:
        assert await read_all(client) == _UPDATES
    assert len(service.request_ids) == 1
    assert service.credentials == {f"Bearer {_KEY}"}
    resumed = "run" if first == 0 else f"watch {first - 1}"
    assert service.calls[:2] == ["run", resumed]


async def test_a_cancellation_is_repeated_as_one_and_the_same() -> None:
    service = BreakingTurnService(1, 0)
    async with serving(service) as address, Client.connect(address, _KEY) as client:
        await client.cancel("t1")
    assert service.calls == ["cancel"] * 2
    assert len(service.request_ids) == 1
    assert "" not in service.request_ids


async def test_a_server_that_stops_and_starts_again_loses_and_repeats_nothing() -> None:
    before, after = BreakingTurnService(), BreakingTurnService()
    before.hang = True
    async with contextlib.AsyncExitStack() as stack:
        stopping = contextlib.AsyncExitStack()
        address = await stopping.enter_async_context(serving(before))
        client = await stack.enter_async_context(Client.connect(address, _KEY))
        updates: list[e.TurnUpdate] = []
        async for update in client.run("count to four"):
            updates.append(update)
            if len(updates) == 1:
                await stopping.aclose()
                await stack.enter_async_context(serving(after, address))
    assert updates == _UPDATES
    # A response in flight when the server stopped may be lost on the wire; then it is requested again.
    assert after.calls in ([f"watch {cursor}"] for cursor in range(1, len(_BATCHES) + 1))


async def test_ask_returns_the_answer_of_a_broken_stream() -> None:
    async with serving(BreakingTurnService(2, 0, 1)) as address, Client.connect(address, _KEY) as client:
        answer = await client.ask("count to four")
    assert (answer.turn_id, answer.session_id, answer.text) == ("t1", "s1", "one two three four")


async def test_a_cursor_resumes_after_what_was_given() -> None:
    async with serving(BreakingTurnService()) as address, Client.connect(address, _KEY) as client:
        stream = client.run("count to four")
        given: list[e.TurnUpdate] = []
        while len(given) < 3:
            given.append(await anext(stream))
        await stream.aclose()
        assert (stream.turn_id, stream.session_id, stream.cursor) == ("t1", "s1", "2")
        assert [*given, *[update async for update in client.watch("t1", stream.cursor)]] == _UPDATES


async def test_an_abandoned_stream_ends_its_call() -> None:
    service = BreakingTurnService()
    service.hang = True
    async with serving(service) as address, Client.connect(address, _KEY) as client:
        stream = client.run("count to four")
        await anext(stream)
        assert not service.ended.is_set()
        await stream.aclose()
        async with asyncio.timeout(10):
            await service.ended.wait()


async def test_a_turn_that_takes_too_long_ends_the_wait_and_names_the_turn() -> None:
    service = BreakingTurnService()
    service.hang = True
    async with serving(service) as address, Client.connect(address, _KEY, timeout_seconds=1.5) as client:
        stream = client.run("count to four")
        with pytest.raises(XenocommError) as caught:
            async for _ in stream:
                pass
    assert (caught.value.reason, caught.value.metadata) == ("DEADLINE_EXCEEDED", {"turn_id": stream.turn_id})


async def test_a_server_that_stays_away_is_given_up_at_the_deadline() -> None:
    async with contextlib.AsyncExitStack() as stopping:
        address = await stopping.enter_async_context(serving(BreakingTurnService()))
        async with Client.connect(address, _KEY, timeout_seconds=0.5) as client:
            await stopping.aclose()
            with pytest.raises(XenocommError) as caught:
                await client.ask("count to four")
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_a_server_that_is_far_away_is_waited_for() -> None:
    async with (
        serving(BreakingTurnService()) as near,
        from_far_away(near, 0.5) as address,
        Client.connect(address, _KEY) as client,
    ):
        assert await read_all(client) == _UPDATES


async def test_connecting_to_nobody_fails_at_once_and_names_the_address() -> None:
    async with serving(BreakingTurnService()) as address:
        pass
    with pytest.raises(XenocommError) as caught:
        async with Client.connect(address, _KEY):
            raise AssertionError("connected")
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVICE_UNAVAILABLE")
    assert address in caught.value.message


async def test_listing_repeats_what_was_unavailable_and_follows_the_pages() -> None:
    service = BreakingTurnService(True, False, False)
    async with serving(service) as address, Client.connect(address, _KEY) as client:
        turns = [turn.turn_id async for turn in client.list(session="s1")]
    assert turns == ["0", "1", "2", "3"]
    assert service.calls == ["list s1 ", "list s1 ", "list s1 2"]


async def test_a_refusal_is_raised_and_not_repeated() -> None:
    service = BreakingTurnService()
    service.refuses = True
    async with serving(service) as address, Client.connect(address, _KEY) as client:
        with pytest.raises(XenocommError) as streamed:
            await client.ask("count to four")
        with pytest.raises(XenocommError) as unary:
            await client.get("t1")
    assert (streamed.value.code, unary.value.code) == (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
    assert service.calls == ["run"]
