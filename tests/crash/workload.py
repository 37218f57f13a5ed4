"""The script that runs under fire: turns of every sort, and callers that retry until they get an answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from tests.flow.ledger import Ledger
from tests.flow.test_engine import HANDY, asks_for, calculate, calculation, post
from tests.flow.test_turns import chain, spec
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Reply, Request

from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_pb2 import (
    ON_FAILURE_COMPENSATE,
    TURN_STATE_CANCELLED,
    TURN_STATE_COMPLETED,
    TURN_STATE_FAILED,
    AgentStep,
    ApprovalStep,
    NoopStep,
    Plan,
    Step,
    TurnLimits,
    TurnState,
)
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client, XenocommError

_CALL_SECONDS = 10.0
_AGAIN_SECONDS = 0.05
_QUESTION = "What is a turn?"
# A caller retries when the mesh is being killed, or when the log cannot say whether an append succeeded.
_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})


class Vendor(OpenAIChatServer):
    """A model that calls a tool, and answers once it has the result, whatever the requests before."""

    def events(self, request: Request) -> Sequence[bytes]:
        self.requests.clear()
        has_result = request.body["messages"][-1]["role"] == "tool"
        self.reply = Reply(texts=("It ", "is ", "42.")) if has_result else asks_for(calculation("c1", "6 * 7"))
        return super().events(request)


class World(Ledger):
    """The outside world; ignores callers that die in the middle of a call."""

    def __init__(self) -> None:
        super().__init__()
        self._server.handle_error = lambda request, client_address: None


@dataclass(slots=True)
class Asked:
    """A requested turn, and what is owed once it is acknowledged: how it ends, and its effects in order."""

    spec: pb.TurnSpec
    ends: frozenset[TurnState.ValueType] = frozenset({TURN_STATE_COMPLETED})
    effects: Mapping[str, str] | None = field(default_factory=dict[str, str])  # step -> path; None: each at most once
    children: int = 0
    name: str = ""
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    turn_id: str = ""  # once acknowledged


def _fan_out() -> Plan:
    fan_out = "['1 + 1', '2 + 2', '3 + 3']"
    return Plan(
        steps=[
            calculate("first", input="{'expression': '2 ** 3'}"),
            calculate("each", "first", fan_out=fan_out, input="{'expression': item}"),
            Step(step_id="no", depends_on=["first"], condition="int(outputs.first.json.value) > 100", noop=NoopStep()),
            Step(step_id="end", depends_on=["each"], noop=NoopStep()),
        ]
    )


def _booking(ledger: Ledger) -> Asked:
    steps = [post("e0", ledger, "book/0")]
    for at in range(1, 4):
        steps.append(post(f"e{at}", ledger, f"flaky/{at}" if at == 2 else f"book/{at}", f"e{at - 1}"))
        steps.append(Step(step_id=f"n{at}", depends_on=[f"e{at - 1}"], noop=NoopStep()))
    steps.append(Step(step_id="end", depends_on=[step.step_id for step in steps], noop=NoopStep()))
    owed = {"e0": "/book/0", "e1": "/book/1", "e2": "/flaky/2", "e3": "/book/3"}
    return Asked(spec(plan=Plan(steps=steps)), effects=owed)


def _undoing(ledger: Ledger) -> Asked:
    steps = [
        post("flight", ledger, "book/flight"),
        post("hotel", ledger, "book/hotel", "flight"),
        post("car", ledger, "refuse/car", "hotel", on_failure=ON_FAILURE_COMPENSATE),
        post("no_flight", ledger, "cancel/flight", compensates="flight"),
        post("no_hotel", ledger, "cancel/hotel", compensates="hotel"),
    ]
    owed = {
        "flight": "/book/flight",
        "hotel": "/book/hotel",
        "no_hotel": "/cancel/hotel",
        "no_flight": "/cancel/flight",
    }
    return Asked(spec(plan=Plan(steps=steps)), frozenset({TURN_STATE_FAILED}), owed)


def _cancelled(ledger: Ledger) -> Asked:
    """Cancelled while effects are under way; it may complete first."""
    steps = [post(f"e{at}", ledger, f"book/{at}", *([f"e{at - 1}"] if at else [])) for at in range(3)]
    ends = frozenset({TURN_STATE_CANCELLED, TURN_STATE_COMPLETED})
    return Asked(spec(plan=Plan(steps=steps)), ends, effects=None)


def _sub_turn() -> Plan:
    ask = Step(step_id="ask", agent=AgentStep(personality_id="guide"))
    return Plan(steps=[ask, Step(step_id="end", depends_on=["ask"], noop=NoopStep())])


def approval() -> Plan:
    """Returns a plan that asks for approval, and passes the answer on."""
    ask = Step(step_id="ask", approval=ApprovalStep(question="Shall I?", choices=["yes", "no"]))
    return Plan(steps=[ask, Step(step_id="do", depends_on=["ask"], noop=NoopStep(), input="outputs.ask.text")])


# One turn of each sort.
SORTS: Mapping[str, Callable[[Ledger], Asked]] = {
    "chain": lambda _: Asked(spec(plan=chain(6), session_id="s0")),
    "next of its session": lambda _: Asked(spec(plan=chain(2), session_id="s0")),
    "fan-out and join": lambda _: Asked(spec(personality_id="handy", plan=_fan_out())),
    "effects in order": _booking,
    "compensation": _undoing,
    "model with tools": lambda _: Asked(spec("What is 6 times 7?", session_id="s1", **HANDY)),
    "answer": lambda _: Asked(spec(_QUESTION, session_id="s2")),
    "answer again": lambda _: Asked(spec(_QUESTION, session_id="s2")),
    "sub-turn": lambda _: Asked(spec(_QUESTION, plan=_sub_turn()), children=1),
    "approval": lambda _: Asked(spec(plan=approval())),
    "cancelled while it waits": lambda _: Asked(spec(plan=approval()), frozenset({TURN_STATE_CANCELLED})),
    "cancelled under way": _cancelled,
}


def script(ledger: Ledger, sorts: Iterable[str] = SORTS) -> list[Asked]:
    """Returns one turn of each sort."""
    script = [SORTS[name](ledger) for name in sorts]
    for name, asked in zip(sorts, script, strict=True):
        asked.name = name
    return script


@dataclass(slots=True)
class Run:
    """One run of the script, by its own tenant. `faults` has the answers that should never be given."""

    tenant_id: str
    asked: list[Asked]
    faults: list[str] = field(default_factory=list[str])

    async def drive(self, client: Client) -> None:
        """Requests each turn that is not acknowledged yet, and does what each needs to end. May be called again."""
        await asyncio.gather(*(self._drive(client, asked) for asked in self.asked))

    async def _drive(self, client: Client, asked: Asked) -> None:
        limits = TurnLimits(max_attempts=10)
        request = pb.CreateTurnRequest(request_id=asked.request_id, turn=asked.spec)
        request.turn.limits.CopyFrom(limits)
        stub = TurnServiceStub(client.channel)

        async def create() -> str:
            return (await stub.CreateTurn(request, timeout=_CALL_SECONDS)).turn.turn_id

        for turn_id in await asyncio.gather(self._persist(create), self._persist(create)):  # As if asked twice.
            if asked.turn_id not in ("", turn_id):
                self.faults.append(f"{asked.turn_id} ({asked.name}): its request made another turn, {turn_id}")
            asked.turn_id = turn_id
        if "cancelled" in asked.name:
            await self._persist(lambda: client.cancel(asked.turn_id))
        elif asked.name == "approval":
            await self._persist(lambda: self._answer(client, asked.turn_id))

    async def _answer(self, client: Client, turn_id: str) -> None:
        async for update in client.watch(turn_id):
            if update.event.HasField("turn_waiting"):
                break
        await client.provide_input(turn_id, f"{turn_id}/ask", "yes")

    async def _persist(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Retries a call until it is answered. A turn that is already over cannot be cancelled, and need not be."""
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code().name not in _PASSING:
                    raise
            except XenocommError as error:
                if error.reason == "TURN_STATE":
                    return None
                if error.code.name not in _PASSING:
                    raise
            await asyncio.sleep(_AGAIN_SECONDS)
