"""One schedule: a few turns, their log, owners, workers, people, a clock, and all that may go wrong between them.

All chance comes from one `Random`, so that a seed reproduces a schedule and hypothesis can shrink it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from tests.simulation import checks
from tests.simulation.log import Log
from tests.simulation.owner import Owner
from tests.simulation.plans import a_request, a_written_plan

from agentshell.content import calls_of
from agentshell.mesh import ids
from agentshell.turn import envelope
from agentshell.turn.state import Fold, is_over
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Part, Text, ToolCall, Usage
from kfm.error.v1.error_pb2 import ERROR_REASON_PROVIDER_UNAVAILABLE, Failure
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

_MAX_TURNS = 3
_MAX_ACTIONS = 80
_CANCEL_SHARE = 0.01
_MAX_CALM_ROUNDS = 200
_BEGIN_MICROS = 1_750_000_000_000_000
_RESTING = (t.TURN_STATE_WAITING, t.TURN_STATE_COMPLETED, t.TURN_STATE_FAILED, t.TURN_STATE_CANCELLED)
_INVALID_ARGUMENT, _UNAVAILABLE = 3, 14


@dataclass(slots=True, eq=False)
class _Attempt:
    owner: Owner  # who gets the result, if alive
    turn_id: str
    step: t.Step
    attempt: int
    asked_by: str  # the event that its results refer to

    @property
    def key(self) -> str:
        """The idempotency key of its effect."""
        return f"{self.turn_id}/{self.step.step_id}"


class World:
    """Runs one schedule; `run` raises AssertionError if an invariant is broken."""

    def __init__(self, random: Random, *, one_owner: bool = False) -> None:
        self._random = random
        self._one_owner = one_owner  # No owner outlives its lease.
        self.attempts_outlive_owners = random.random() < 0.4
        self.log = Log(drops_duplicates=random.random() < 0.5)
        self.max_active = random.choice((1, 2, 9))
        self.requested: dict[str, e.TurnRequested] = {}
        self.sessions: dict[str, str] = {}
        self.effects = Counter[str]()
        self._results: dict[str, t.StepResult] = {}
        self._fences: dict[str, int] = {}
        self._micros = self.leaps = 0
        self._owners: list[Owner] = []
        self._attempts: list[_Attempt] = []
        self._is_calm = False
        self._turns_left = random.randrange(_MAX_TURNS)
        self._ask()

    def run(self) -> None:
        """Lets things happen and go wrong for a while, then lets all go right until every turn is over."""
        for _ in range(self._random.randrange(_MAX_ACTIONS)):
            self.act()
            if self._is_at_end():
                break
        self.conclude()

    # What owners see of the world.

    def nanoseconds(self, skew_micros: int) -> int:
        """Returns the time since 1970 by an owner's clock."""
        return (_BEGIN_MICROS + self._micros + skew_micros) * 1000

    def stamp(self, event: e.TurnEvent, turn_id: str, skew_micros: int, before: str = "") -> e.TurnEvent:
        """Sets the turn, the time and the id of an event that follows the event `before`."""
        event.turn_id = turn_id
        event.header.event_id = ids.digest(before, *envelope.event_key(event))
        envelope.set_time(event.header.time, self.nanoseconds(skew_micros))
        self._micros += 1000
        return event

    def begin(self, owner: Owner, fold: Fold, step_id: str, attempt: int, event_id: str = "") -> None:
        """Begins an attempt that an event requests; it may never run."""
        step = fold.steps[step_id]
        if not step.HasField("approval"):
            asked = t.Step()
            asked.CopyFrom(step)
            if step.tool.asked_by:
                self._check_call(fold, step)
            # Requests through the log may be repeated: they are the same request, whichever owner makes them.
            asked_by = "" if self.attempts_outlive_owners else event_id
            self._attempts.append(_Attempt(owner, fold.turn.turn_id, asked, attempt, asked_by))

    def append(self, owner: Owner, events: list[e.TurnEvent]) -> list[tuple[int, bool]] | None:
        """Appends for an owner, which may crash before or after, or miss the reply. None: it gets no reply.

        Attempts begin in parallel, or only with the append if they outlive their owner.
        """
        fate = 9 if self._is_calm else self._random.randrange(40)
        if fate != 0 or not self.attempts_outlive_owners:
            owner.begin(events)
        if fate == 0:  # Nothing was written.
            return None
        acks = self.log.append(events)
        if fate == 1:  # It was written, but the owner is gone.
            return None
        if fate == 2:  # The reply is lost, so the owner retries.
            acks = self.log.append(events)
        return acks

    def goes_on(self, owner: Owner, step_id: str, attempt: int) -> bool:
        """Returns whether an earlier owner in the same process began the attempt and it goes on; adopts it."""
        for each in self._attempts:
            if (each.step.step_id, each.attempt) == (step_id, attempt) and each.owner.process == owner.process:
                each.owner = owner
                return True
        return False

    def end(self, owner: Owner) -> None:
        """Ends an owner; its attempts go on unobserved for a while."""
        owner.is_alive = False
        self._owners = [other for other in self._owners if other is not owner]

    def hand_over(self, owner: Owner) -> None:
        """Ends the attempts of an owner that has ended."""
        if not self.attempts_outlive_owners:
            for attempt in [each for each in self._attempts if each.owner is owner]:
                self._attempts.remove(attempt)
                if self._random.random() < 0.3:
                    self._do(attempt)  # The effect happens, but nobody hears of it.

    # What may happen.

    def act(self) -> None:
        """Lets one thing happen."""
        action = World.cancel if self._random.random() < _CANCEL_SHARE else self._random.choice(_CHANCES)
        action(self)

    def take_over(self) -> None:
        """Adds a new owner; an older one may live on unaware for a while."""
        random = self._random
        for owner in list(self._owners):
            if self._one_owner or self._is_calm or len(self._owners) > 1 or random.random() < 0.5:
                self.end(owner)
        there = len(self.log.events)
        end = there if self._is_calm or self._one_owner or random.random() < 0.8 else random.randrange(there + 1)
        skew_micros = 0 if self._is_calm else random.choice((0, 0, -20_000, 20_000))
        process = random.choice([at for at in range(3) if at not in {owner.process for owner in self._owners}])
        self._owners.append(Owner(self, end, skew_micros, process))

    def crash(self) -> None:
        """Ends an owner."""
        if self._owners:
            owner = self._random.choice(self._owners)
            self.end(owner)
            self.hand_over(owner)

    def own(self) -> None:
        """Has an owner read some of the log and act on it."""
        if not self._owners:
            self.take_over()
        owner = self._random.choice(self._owners)
        owner.read(self._random.choice((0, 1, 2, 3, 100)))
        owner.handle()

    def work(self) -> None:
        """Runs an attempt."""
        if self._attempts:
            attempt = self._random.choice(self._attempts)
            if not attempt.owner.is_alive and self._random.random() < 0.5:
                self.hand_over(attempt.owner)
            else:
                self._finish(attempt)

    def pass_time(self) -> None:
        """Moves the clock: a little, or past a time limit."""
        self._leap(self._random.choice((1_000, 300_000, 5_000_000, 61_000_000)))

    def ask(self) -> None:
        """Requests another turn."""
        if self._turns_left:
            self._turns_left -= 1
            self._ask()

    def cancel(self) -> None:
        """Requests the cancellation of a turn."""
        cancel = e.TurnCancelRequested(message="enough")
        self._say(self._random.choice(list(self.requested)), e.TurnEvent(turn_cancel_requested=cancel))

    def provide(self) -> None:
        """Answers a question that is open by the log."""
        waiting = [
            (turn_id, step.step_id)
            for turn_id, fold in self.log.folds.items()
            for step in fold.steps.values()
            if step.state == t.STEP_STATE_SCHEDULED and step.HasField("approval")
        ]
        if waiting:
            turn_id, step_id = self._random.choice(waiting)
            answer = Message(role=ROLE_USER, parts=[Part(text=Text(text="yes"))])
            provided = e.InputProvided(step_id=step_id, input=answer, principal_id="ann")
            self._say(turn_id, e.TurnEvent(input_provided=provided))

    def _leap(self, micros: int) -> None:
        self._micros += micros
        self.leaps += 1

    def conclude(self) -> None:
        """Lets all go right until every turn is over, then checks the invariants."""
        self._calm_down()
        checks.check(self.log, self.sessions, one_owner=self._one_owner)
        assert all(count == 1 for count in self.effects.values()), "no effect is doubled"

    def _finish(self, attempt: _Attempt) -> None:
        """Runs an attempt; it may be reported twice, run again, or never be heard of."""
        event = self._result_of(attempt)
        fate = 9 if self._is_calm else self._random.randrange(10)
        if fate != 0:  # Otherwise it runs once more.
            self._attempts.remove(attempt)
        for _ in range(2 if fate == 1 else 1):
            if self.attempts_outlive_owners:
                self.log.append([event])
            elif attempt.owner.is_alive:
                attempt.owner.inbox.append(event)

    def _result_of(self, attempt: _Attempt) -> e.TurnEvent:
        random, step_id = self._random, attempt.step.step_id
        chance = 9 if self._is_calm else random.randrange(16)
        is_refused = attempt.attempt < self._fences.get(attempt.key, 0)
        if chance > 2 and not is_refused:
            succeeded = e.StepSucceeded(step_id=step_id, attempt=attempt.attempt, result=self._do(attempt))
            skew_micros = random.choice((0, -5_000))
            return self.stamp(e.TurnEvent(step_succeeded=succeeded), attempt.turn_id, skew_micros, attempt.asked_by)
        if chance == 0 and not is_refused:
            self._do(attempt)  # The effect happens, yet the attempt fails.
        code = _INVALID_ARGUMENT if chance == 1 else _UNAVAILABLE
        failure = Failure(code=code, reason=ERROR_REASON_PROVIDER_UNAVAILABLE, message="down")
        failed = e.StepFailed(step_id=step_id, attempt=attempt.attempt, failure=failure)
        return self.stamp(e.TurnEvent(step_failed=failed), attempt.turn_id, 0, attempt.asked_by)

    def _do(self, attempt: _Attempt) -> t.StepResult:
        """Produces an attempt's effect once for each key, and fences lower attempts off."""
        key = attempt.key
        self._fences[key] = max(self._fences.get(key, 0), attempt.attempt)
        if key not in self._results:
            self.effects[key] += 1
            self._results[key] = self._produce(attempt.step)
        return self._results[key]

    def _produce(self, step: t.Step) -> t.StepResult:
        random = self._random
        text = random.choice(("yes", "no"))
        result = t.StepResult(output=Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text=text))]))
        result.usage.CopyFrom(Usage(input_tokens=1, output_tokens=1))
        result.usage.cost.amount_micros = 1
        if step.HasField("model") and random.random() < 0.4:
            for index in range(1 + random.randrange(2)):
                result.output.parts.add(tool_call=ToolCall(call_id=f"{step.step_id}-{index}", name="clock"))
        if step.HasField("plan"):
            result.plan.CopyFrom(a_written_plan(random))
        return result

    def _ask(self) -> None:
        turn_id = f"T{len(self.requested)}"
        self.requested[turn_id] = a_request(self._random)
        self.sessions[turn_id] = self._random.choice(("s", "s", "u"))
        self._say(turn_id, e.TurnEvent(turn_requested=self.requested[turn_id]))

    def _say(self, turn_id: str, event: e.TurnEvent) -> None:
        self.log.append([self.stamp(event, turn_id, 0)])

    # How it ends, and what must hold then.

    def _is_over(self) -> bool:
        return all(is_over(fold.turn) for fold in self.log.folds.values())

    def _is_at_end(self) -> bool:
        return self._is_over() and not (self._attempts or self._owners or self._turns_left)

    def _calm_down(self) -> None:
        self._is_calm = True
        if not self._owners or self._random.random() < 0.5:
            self.take_over()
        owner = self._owners[-1]
        for other in self._owners[:-1]:
            self.end(other)
        for _ in range(_MAX_CALM_ROUNDS):
            assert owner.is_alive, "nobody fences an owner that is alone"
            owner.read(len(self.log.events))
            owner.handle()
            if owner.is_alive and owner.has_caught_up():
                for turn_id, fold in self.log.folds.items():
                    assert _standing(owner.turn(turn_id)) == _standing(fold.turn), "an owner knows what the log says"
                if self._is_over():
                    return
            for attempt in list(self._attempts):
                self._finish(attempt)
            if self._random.random() < 0.5:
                self.provide()
            elif all(fold.turn.state in _RESTING for fold in self.log.folds.values()):  # Otherwise they end without it.
                self._leap(30_000_000)
        raise AssertionError(f"a turn has no end: {[_standing(fold.turn) for fold in self.log.folds.values()]}")

    def _check_call(self, fold: Fold, step: t.Step) -> None:
        asker = fold.steps[step.tool.asked_by]
        assert step.tool.call.call_id in {call.call_id for call in calls_of(asker.result.output)}, "who asked for it?"


def _standing(turn: t.Turn) -> tuple[object, ...]:
    return (turn.state, *((step.step_id, step.state, step.attempt) for step in turn.plan.steps))


# What may happen next, weighted by repetition.
_CHANCES = (
    *[World.own] * 8,
    *[World.work] * 6,
    *[World.provide] * 2,
    World.ask,
    World.pass_time,
    World.take_over,
    World.crash,
)
