"""How the steps of a plan depend on one another: which can start, which never will, and which are not needed."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from kfm.content.v1.content_pb2 import Message
from kfm.turn.v1 import turn_pb2 as t

_ENDED = frozenset({t.STEP_STATE_SUCCEEDED, t.STEP_STATE_SKIPPED, t.STEP_STATE_EXPANDED})
_NOT_BEGUN = frozenset({t.STEP_STATE_UNSPECIFIED, t.STEP_STATE_SKIPPED})


class Verdict(Enum):
    """What a step's dependencies mean for a step that has not started."""

    WAIT = "wait"
    START = "start"
    SKIP = "skip"


class Graph:
    """A turn's steps by name, without compensations. `may_retry` says whether a failed step is retried."""

    def __init__(self, turn: t.Turn, may_retry: Callable[[t.Step], bool]) -> None:
        self.steps = {step.step_id: step for step in turn.plan.steps if not step.compensates}
        self.states = {name: step.state for name, step in self.steps.items()}
        self._may_retry = may_retry
        # Only a race can make a step under way unneeded; otherwise its dependents wait for it.
        has_races = any(step.HasField("join") and not step.join.HasField("all") for step in self.steps.values())
        self._needed = self._find_needed() if has_races else None

    def has_ended(self, name: str) -> bool:
        """Returns whether a step is settled."""
        state = self.states[name]
        if state == t.STEP_STATE_FAILED:
            return not (self._may_retry(self.steps[name]) and self.is_needed(name))
        return state in _ENDED

    def is_needed(self, name: str) -> bool:
        """Returns whether its end matters: no step depends on it, or one that is needed and has not started does."""
        return self._needed is None or name in self._needed

    def verdict(self, step: t.Step) -> Verdict:
        """Returns whether a step that has not started can start, according to its join."""
        if not step.HasField("join") or step.join.HasField("all"):
            verdict = Verdict.START
            for name in step.depends_on:
                if self.states[name] == t.STEP_STATE_SKIPPED:
                    return Verdict.SKIP
                if not self.has_ended(name):
                    verdict = Verdict.WAIT
            return verdict
        before = list(step.depends_on)
        count = step.join.quorum.count if step.join.HasField("quorum") else 1
        succeeded = sum(self.states[name] == t.STEP_STATE_SUCCEEDED for name in before)
        if succeeded >= count:
            return Verdict.START
        open_steps = [self.steps[name] for name in before if not self.has_ended(name)]
        if any(other.fan_out or other.HasField("plan") for other in open_steps):  # The number of stand-ins is unknown.
            return Verdict.WAIT
        return Verdict.WAIT if succeeded + len(open_steps) >= count else Verdict.SKIP

    def output(self) -> Message:
        """Returns the turn's output: that of the last listed step that succeeded and that no other depends on."""
        for name in reversed(self.steps):
            if self.states[name] == t.STEP_STATE_SUCCEEDED and not self._dependents(name):
                return self.steps[name].result.output
        return Message()

    def _dependents(self, name: str) -> list[str]:
        return [other for other, step in self.steps.items() if name in step.depends_on]

    def _find_needed(self) -> set[str]:
        needed: set[str] = set()
        depended_on = {name for step in self.steps.values() for name in step.depends_on}
        found = [name for name in self.steps if name not in depended_on]
        while found:
            name = found.pop()
            if name not in needed:
                needed.add(name)
                if self.states[name] in _NOT_BEGUN:
                    found.extend(self.steps[name].depends_on)
        return needed
