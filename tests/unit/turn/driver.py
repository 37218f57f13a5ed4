"""Runs a turn by the engine's decisions alone: a function provides the steps' results, and time is simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from agentshell.content import fill
from agentshell.mesh import ids
from agentshell.turn import envelope, state
from agentshell.turn.decision import decide, expire, expire_inputs, is_all, restart
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Part, Text, ToolCall, Usage
from kfm.error.v1.error_pb2 import ERROR_REASON_PROVIDER_UNAVAILABLE, Failure
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

TURN_ID = "T"
INVALID_ARGUMENT, UNAVAILABLE = 3, 14

Outcome = t.StepResult | Failure | None
Answer = Callable[[t.Step], Outcome]

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_TICK = timedelta(milliseconds=1)
_MAX_ROUNDS = 1000


def says(text: str, tokens: int = 1, cost_micros: int | None = 1) -> t.StepResult:
    """Returns a text result; a cost of None is unknown."""
    result = t.StepResult(output=Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text=text))]), provider="driver")
    result.usage.CopyFrom(Usage(input_tokens=tokens, output_tokens=tokens))
    if cost_micros is not None:
        result.usage.cost.amount_micros = cost_micros
        result.usage.cost.currency_code = "USD"
    return result


def asks(*names: str, **arguments: Any) -> t.StepResult:
    """Returns a model's result that calls tools, all with the same arguments."""
    result = says("")
    for index, name in enumerate(names):
        asked = result.output.parts.add().tool_call
        asked.CopyFrom(ToolCall(call_id=f"call-{index}", name=name))
        fill(asked.arguments, arguments)
    return result


def fails(code: int = INVALID_ARGUMENT, message: str = "down") -> Failure:
    """Returns a failure; by default a permanent one."""
    return Failure(code=code, reason=ERROR_REASON_PROVIDER_UNAVAILABLE, message=message)  # pyright: ignore[reportArgumentType] - a code


def request(*steps: t.Step, **changes: Any) -> e.TurnRequested:
    """Returns a turn's request: `steps` are its plan, and `limits` override the defaults."""
    limits = t.TurnLimits(max_steps=25, max_attempts=3)
    limits.MergeFrom(changes.pop("limits", t.TurnLimits()))
    if not limits.HasField("max_duration"):
        limits.max_duration.FromSeconds(120)
    asked = Message(role=ROLE_USER, parts=[Part(text=Text(text=changes.pop("text", "hello")))])
    plan = t.Plan(steps=steps) if steps else None
    return e.TurnRequested(input=asked, limits=limits, principal_id="ann", personality_id="guide", plan=plan, **changes)


def noop(step_id: str, *needs: str, **fields: Any) -> t.Step:
    """Returns a step that does nothing and depends on `needs`."""
    return t.Step(step_id=step_id, depends_on=needs, noop=t.NoopStep(), **fields)


class Driver:
    """One turn. `events` is its history, `turn` its fold; `now` advances with each event."""

    def __init__(self, requested: e.TurnRequested, answer: Answer = lambda step: says(step.step_id)) -> None:
        self.requested = requested
        self.turn = t.Turn()
        self.now = _BEGIN
        self.events: list[e.RecordedTurnEvent] = []
        self._answer = answer
        self._asked: set[tuple[str, int]] = set()
        self.write(e.TurnEvent(turn_requested=requested))

    @property
    def turn(self) -> t.Turn:
        return self._fold.turn

    @turn.setter
    def turn(self, turn: t.Turn) -> None:
        self._fold = state.Fold(turn)

    def write(self, event: e.TurnEvent) -> bool:
        """Writes an event and folds it; returns whether it changed anything."""
        self.now += _TICK
        event.turn_id = TURN_ID
        header = event.header
        header.event_id = ids.digest(*envelope.event_key(event))
        header.type, header.spec_version = envelope.type_of(event), envelope.SPEC_VERSION
        header.tenant_id, header.session_id, header.correlation_id = "acme", "S", TURN_ID
        header.time.FromDatetime(self.now)
        self.events.append(e.RecordedTurnEvent(event=event, offset=len(self.events), append_time=header.time))
        return self._fold.apply(event)

    def decide(self) -> list[e.TurnEvent]:
        """Writes the engine's decisions until there are no more, and returns them."""
        made: list[e.TurnEvent] = []
        for _ in range(_MAX_ROUNDS):
            decided = decide(self.turn, self.requested)
            if not decided:
                return made
            for event in decided:
                assert self.write(event), f"a decision always changes the turn: {event}"
                made.append(event)
            if is_all(self.turn, decided):
                assert decide(self.turn, self.requested) == [], "more followed what was said to be all"
        raise AssertionError("deciding has no end")

    def settle(self, step_id: str, outcome: t.StepResult | Failure) -> bool:
        """Writes the outcome of the step's last attempt; returns whether that changed anything."""
        step = self.step(step_id)
        if isinstance(outcome, Failure):
            event = e.TurnEvent(step_failed=e.StepFailed(step_id=step.step_id, attempt=step.attempt, failure=outcome))
        else:
            event = e.TurnEvent(
                step_succeeded=e.StepSucceeded(step_id=step.step_id, attempt=step.attempt, result=outcome)
            )
        return self.write(event)

    def run(self) -> t.Turn:
        """Decides and answers until the turn is over or can only wait; returns the turn."""
        for _ in range(_MAX_ROUNDS):
            self.decide()
            attempts = [(step, outcome) for step in self._under_way() if (outcome := self._answer(step)) is not None]
            if not attempts or state.is_over(self.turn):
                return self.turn
            for before, outcome in attempts:
                step = self.step(before.step_id)
                if step.state == t.STEP_STATE_SCHEDULED and step.attempt == before.attempt:
                    self.settle(before.step_id, outcome)
                    self.decide()
        raise AssertionError("the turn has no end")

    def provide(self, step_id: str, text: str) -> bool:
        """Provides the input that the turn waits for."""
        answer = Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])
        provided = e.InputProvided(step_id=self.step(step_id).step_id, input=answer, principal_id="ann")
        return self.write(e.TurnEvent(input_provided=provided))

    def cancel(self) -> bool:
        """Requests the turn's cancellation."""
        return self.write(
            e.TurnEvent(turn_cancel_requested=e.TurnCancelRequested(message="enough", principal_id="ann"))
        )

    def take_over(self) -> list[e.TurnEvent]:
        """Does what a new owner does with another's turn."""
        made = restart(self.turn)
        for event in made:
            assert self.write(event)
        return made

    def wait(self, seconds: float) -> None:
        """Lets time pass, and expires the questions whose time is up."""
        self.now += timedelta(seconds=seconds)
        for event in expire_inputs(self.turn, self.now.replace(tzinfo=None)):
            assert self.write(event)

    def expire(self) -> bool:
        """Ends the turn as timed out."""
        return self.write(expire(self.turn))

    def step(self, step_id: str) -> t.Step:
        """Returns a step by its name within the turn."""
        whole = step_id if step_id.startswith(f"{TURN_ID}/") else f"{TURN_ID}/{step_id}"
        return next(step for step in self.turn.plan.steps if step.step_id == whole)

    def states(self) -> dict[str, str]:
        """Returns each step's state by name."""
        return {name_of(s): t.StepState.Name(s.state).removeprefix("STEP_STATE_") for s in self.turn.plan.steps}

    def kinds(self) -> list[str]:
        """Returns the kind and the step's name of each event, in order."""
        return [_told(recorded.event) for recorded in self.events]

    def _under_way(self) -> Iterable[t.Step]:
        for step in self.turn.plan.steps:
            key = (step.step_id, step.attempt)
            if step.state == t.STEP_STATE_SCHEDULED and not step.HasField("approval") and key not in self._asked:
                self._asked.add(key)
                yield step


def name_of(step: t.Step) -> str:
    """Returns the name of a step within its turn."""
    return step.step_id.removeprefix(f"{TURN_ID}/")


def _told(event: e.TurnEvent) -> str:
    kind = event.WhichOneof("event") or ""
    step_id = getattr(getattr(event, kind), "step_id", "")
    return f"{kind} {step_id.removeprefix(f'{TURN_ID}/')}".strip()
