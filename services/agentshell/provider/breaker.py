"""Leaves an endpoint alone for a while once it fails again and again. Pure: the time is passed in, in seconds.

    what happens    closed                      open                            half-open
    --------------  --------------------------  ------------------------------  ------------------------
    a call asks     permit                      refused; once its time is up:   refused
                                                permit, and half-open
    it answers      -                           -                               closed
    it succeeds     no failure is counted now   -                               closed
    it fails        one more in a row is        -                               open, for its time
                    counted; too many: open
    it is given up  -                           -                               open, its time is up

A permit is good until the breaker next opens: what a call reports later says nothing of the endpoint as it is by then.
In half-open there is one call under way, which proves the endpoint, and does so as soon as it is answered: nobody waits
for the end of a long answer.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """What the breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The breaker of an endpoint: opens at `failures` failures in a row, for `open_seconds`."""

    __slots__ = ("_failures", "_in_a_row", "_open_seconds", "_opened", "_state", "_until")

    def __init__(self, failures: int, open_seconds: float) -> None:
        self._failures = failures
        self._open_seconds = open_seconds
        self._state = State.CLOSED
        self._in_a_row = 0
        self._opened = 0  # How often; what permits are told apart by.
        self._until = 0.0

    @property
    def state(self) -> State:
        """What it does now. Open stays open until a call asks, however late."""
        return self._state

    def refused_seconds(self, now: float) -> float:
        """Returns how long a call that asks now is still refused; 0: it is not."""
        match self._state:
            case State.CLOSED:
                return 0.0
            case State.OPEN:
                return max(0.0, self._until - now)
            case State.HALF_OPEN:  # As long as if the call under way failed now.
                return self._open_seconds

    def ask(self, now: float) -> int | None:
        """Returns the permit of a call, which it reports with; None: it is refused."""
        if self.refused_seconds(now) > 0:
            return None
        if self._state is State.OPEN:
            self._state = State.HALF_OPEN
        return self._opened

    def answers(self, permit: int) -> None:
        """Notes that the endpoint begins to answer a call."""
        if permit == self._opened and self._state is State.HALF_OPEN:
            self._close()

    def succeeds(self, permit: int) -> None:
        """Notes the good end of a call."""
        if permit == self._opened:
            self._close()

    def fails(self, permit: int, now: float) -> None:
        """Notes that a call failed for a reason that lies with the endpoint."""
        if permit != self._opened:
            return
        self._in_a_row += 1
        if self._state is State.HALF_OPEN or self._in_a_row >= self._failures:
            self._open(now + self._open_seconds)

    def is_given_up(self, permit: int, now: float) -> None:
        """Notes the end of a call that says nothing of the endpoint, such as one that was cancelled."""
        if permit == self._opened and self._state is State.HALF_OPEN:
            self._open(now)

    def _close(self) -> None:
        self._state = State.CLOSED
        self._in_a_row = 0

    def _open(self, until: float) -> None:
        self._state = State.OPEN
        self._opened += 1
        self._until = until
