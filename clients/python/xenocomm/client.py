"""The client: one connection, one credential."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio

from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import RecordedTurnEvent
from kfm.turn.v1.turn_pb2 import (
    PLAN_STRATEGY_UNSPECIFIED,
    PRIORITY_UNSPECIFIED,
    ModelChoice,
    Plan,
    PlanStrategy,
    Priority,
    Turn,
    TurnLimits,
    TurnState,
)
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import errors
from xenocomm.answer import Answer
from xenocomm.errors import XenocommError
from xenocomm.stream import TurnStream
from xenocomm.text import Transcript

if TYPE_CHECKING:
    from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceAsyncStub

DEFAULT_TIMEOUT_SECONDS = 150.0  # Longer than a turn may take by default.
_CONNECT_TIMEOUT_SECONDS = 5.0

# Streams resume by themselves (stream.py); gRPC retries the other calls that are safe to repeat.
_REPEATABLE = ("GetTurn", "ListTurns", "ListTurnEvents", "CancelTurn", "ProvideInput", "ForkTurn")
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "kfm.turn.v1.TurnService", "method": method} for method in _REPEATABLE],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Not a pause, but the connect timeout: over a wide network, connecting takes several times as long as a message.
    ("grpc.min_reconnect_backoff_ms", round(_CONNECT_TIMEOUT_SECONDS * 1000)),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # Otherwise another client's failures to connect would be ours.
]

_T = TypeVar("_T")


class Client:
    """Talks to the TurnService of a mesh; `connect` makes one. Every method may raise XenocommError.

    `channel` carries the credential, so any stub made from it (`PersonalityServiceStub(client.channel)`) does too.
    """

    def __init__(self, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        self.channel = channel
        self._timeout_seconds = timeout_seconds
        self._turns: TurnServiceAsyncStub = TurnServiceStub(channel)

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls,
        address: str,
        api_key: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        tls: grpc.ChannelCredentials | bool = False,
    ) -> AsyncGenerator[Client]:
        """Connects to `host:port` or `unix:PATH`; raises SERVICE_UNAVAILABLE when nothing answers within 5 s.

        `timeout_seconds` bounds each method, including any resumption. `tls=True` connects over TLS and trusts the
        well-known authorities; to trust your own, pass `grpc.ssl_channel_credentials(Path("ca.pem").read_bytes())`.
        """
        if tls is False:
            made = grpc.aio.insecure_channel(address, _OPTIONS)
        else:
            made = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials() if tls is True else tls, _OPTIONS)
        async with made as channel:
            await _reach(channel, address)
            yield cls(cast("grpc.aio.Channel", _Signed(channel, api_key)), timeout_seconds)

    async def ask(
        self,
        text: str,
        *,
        personality: str = "",
        session: str = "",
        provider: str = "",
        model: str = "",
        strategy: PlanStrategy.ValueType = PLAN_STRATEGY_UNSPECIFIED,
        priority: Priority.ValueType = PRIORITY_UNSPECIFIED,
        plan: Plan | None = None,
        limits: TurnLimits | None = None,
        request_id: str = "",
    ) -> Answer:
        """Runs a turn and returns its answer. Empty arguments take the mesh's defaults; see `run`."""
        transcript = Transcript()
        stream = self.run(
            text,
            personality=personality,
            session=session,
            provider=provider,
            model=model,
            strategy=strategy,
            priority=priority,
            plan=plan,
            limits=limits,
            request_id=request_id,
        )
        async with contextlib.aclosing(stream):
            async for update in stream:
                transcript.add(update)
        return Answer.of(transcript.last_event)

    def run(
        self,
        text: str,
        *,
        personality: str = "",
        session: str = "",
        provider: str = "",
        model: str = "",
        strategy: PlanStrategy.ValueType = PLAN_STRATEGY_UNSPECIFIED,
        priority: Priority.ValueType = PRIORITY_UNSPECIFIED,
        plan: Plan | None = None,
        limits: TurnLimits | None = None,
        request_id: str = "",
    ) -> TurnStream:
        """Starts a turn and streams what happens until it is over.

        Without a `plan`, the mesh makes one; `limits` override the pack's and the mesh's, up to the mesh's maximum. The
        turn starts when the first update is requested. A caller that may itself restart passes a `request_id` of its
        own and reuses it: that never starts a second turn.
        """
        spec = pb.TurnSpec(
            session_id=session,
            personality_id=personality,
            input=_said(text),
            model=_choice(provider, model),
            strategy=strategy,
            priority=priority,
            plan=plan,
            limits=limits,
        )
        request = pb.RunTurnRequest(request_id=request_id or str(uuid.uuid4()), turn=spec)
        return TurnStream(self._turns, request, self._timeout_seconds)

    def watch(self, turn_id: str, cursor: str = "") -> TurnStream:
        """Streams what happens in a turn until it is over; `cursor` resumes where another stream's `cursor` stands."""
        return TurnStream(self._turns, pb.WatchTurnRequest(turn_id=turn_id, cursor=cursor), self._timeout_seconds)

    async def get(self, turn_id: str) -> Turn:
        """Returns a turn as it stands."""
        response = await self._unary(self._turns.GetTurn, pb.GetTurnRequest(turn_id=turn_id))
        return response.turn

    async def list(
        self, *, session: str = "", states: Sequence[TurnState.ValueType] = (), page_size: int = 50
    ) -> AsyncIterator[Turn]:
        """Yields turns, newest first, without their plans; fetches each page when it is needed."""
        request = pb.ListTurnsRequest(session_id=session, states=states, page_size=page_size)
        while True:
            page = await self._unary(self._turns.ListTurns, request)
            for turn in page.turns:
                yield turn
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def events(self, turn_id: str) -> AsyncIterator[RecordedTurnEvent]:
        """Yields the events of a turn so far, oldest first."""
        request = pb.ListTurnEventsRequest(turn_id=turn_id)
        while True:
            page = await self._unary(self._turns.ListTurnEvents, request)
            for event in page.events:
                yield event
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(self, turn_id: str, message: str = "") -> None:
        """Asks for a turn to be cancelled, with `message` as the reason; its last event tells whether it was."""
        request = pb.CancelTurnRequest(turn_id=turn_id, message=message, request_id=str(uuid.uuid4()))
        await self._unary(self._turns.CancelTurn, request)

    async def provide_input(self, turn_id: str, step_id: str, text: str) -> None:
        """Answers the question that a turn is waiting on; `step_id` comes from the turn's plan.

        The first answer counts: a different one raises TURN_STATE, and repeating it changes nothing.
        """
        request = pb.ProvideInputRequest(turn_id=turn_id, step_id=step_id, input=_said(text))
        await self._unary(self._turns.ProvideInput, request)

    async def fork(
        self,
        turn_id: str,
        step_id: str = "",
        *,
        text: str = "",
        personality: str = "",
        session: str = "",
        provider: str = "",
        model: str = "",
        strategy: PlanStrategy.ValueType = PLAN_STRATEGY_UNSPECIFIED,
        priority: Priority.ValueType = PRIORITY_UNSPECIFIED,
        plan: Plan | None = None,
        limits: TurnLimits | None = None,
        request_id: str = "",
    ) -> Turn:
        """Starts a turn that shares another's history up to the end of `step_id` (empty: shares none), and returns it.

        Empty arguments are taken from the original turn, except `session`: empty starts a new one.
        """
        changes = pb.TurnSpec(
            session_id=session,
            personality_id=personality,
            input=_said(text) if text else None,
            model=_choice(provider, model),
            strategy=strategy,
            priority=priority,
            plan=plan,
            limits=limits,
        )
        request = pb.ForkTurnRequest(
            turn_id=turn_id, step_id=step_id, changes=changes, request_id=request_id or str(uuid.uuid4())
        )
        response = await self._unary(self._turns.ForkTurn, request)
        return response.turn

    async def _unary(self, method: Callable[..., Awaitable[_T]], request: object) -> _T:
        try:
            return await method(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from None


def _said(text: str) -> Message:
    return Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])


def _choice(provider: str, model: str) -> ModelChoice | None:
    return ModelChoice(provider=provider, model=model) if provider or model else None


async def _reach(channel: grpc.aio.Channel, address: str) -> None:
    why = ""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CONNECT_TIMEOUT_SECONDS):
            state = channel.get_state(try_to_connect=True)
            while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            why = await _why(channel, address)
    raise XenocommError(
        grpc.StatusCode.UNAVAILABLE,
        "SERVICE_UNAVAILABLE",
        f"nothing answers at {address}{why}",
        metadata={"address": address},
    )


async def _why(channel: grpc.aio.Channel, address: str) -> str:
    """Returns why a connection fails, as a call reports it, or nothing: the channel itself does not say."""
    try:
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    except grpc.aio.AioRpcError as error:
        _, _, said = (error.details() or "").partition("last error: ")
        said = said.partition(": ")[2].removeprefix(f"ipv4:{address}: ")  # Drops the code, which is mostly UNKNOWN.
        hint = ". Does it speak TLS? Then `tls` is missing" if said.endswith("Socket closed") else ""
        return f": {said}{hint}" if said else ""
    return ""


class _Signed:
    """A channel whose calls carry the API key.

    It uses no interceptor: with one, grpc.aio runs a task for each call and a generator for its messages.
    """

    def __init__(self, channel: grpc.aio.Channel, api_key: str) -> None:
        self._channel = channel
        self._authorization = ("authorization", f"Bearer {api_key}")
        self.unary_unary = self._signing(channel.unary_unary)
        self.unary_stream = self._signing(channel.unary_stream)
        self.stream_unary = self._signing(channel.stream_unary)
        self.stream_stream = self._signing(channel.stream_stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def _signing(self, kind: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
        def method(*arguments: Any, **options: Any) -> Callable[..., Any]:
            call = kind(*arguments, **options)

            def begin(request: Any, *, metadata: Iterable[tuple[str, Any]] | None = None, **options: Any) -> Any:
                return call(request, metadata=(*(metadata or ()), self._authorization), **options)

            return begin

        return method
