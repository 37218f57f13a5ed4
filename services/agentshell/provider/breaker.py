"""Spares an endpoint calls for a while once it keeps failing. Pure: the time is passed in, in seconds.

    event           closed                      open                            half-open
    --------------  --------------------------  ------------------------------  ------------------------
    a call asks     permit                      refused; once the time is up:   refused
                                                permit, then half-open
    it answers      -                           -                               closed
    it succeeds     failure count reset to 0    -                               closed
    it fails        failure count + 1;          -                               open for the full time
                    at the limit: open
    it is given up  -                           -                               open, time already up

A permit is valid until the breaker next opens: what an older call reports says nothing about the endpoint as it is now.
Half-open lets one call through to prove the endpoint, which it does as soon as its answer begins: nobody waits for the
end of a long answer.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """The state of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """An endpoint's breaker: opens after `failures` failures in a row, for `open_seconds`."""

    __slots__ = ("_failures", "_in_a_row", "_open_seconds", "_opened", "_state", "_until")

    def __init__(self, failures: int, open_seconds: float) -> None:
        self._failures = failures
        self._open_seconds = open_seconds
        self._state = State.CLOSED
        self._in_a_row = 0
        self._opened = 0  # How often it has opened; tells permits apart.
        self._until = 0.0

    @property
    def state(self) -> State:
        """The current state. Open lasts until a call asks, however late."""
        return self._state

    def refused_seconds(self, now: float) -> float:
        """Returns how much longer calls are refused; 0: they are not."""
        match self._state:
            case State.CLOSED:
                return 0.0
            case State.OPEN:
                return max(0.0, self._until - now)
            case State.HALF_OPEN:  # As if the call under way failed now.
                return self._open_seconds

    def ask(self, now: float) -> int | None:
        """Returns a permit, with which the call reports its outcome; None: it is refused."""
        if self.refused_seconds(now) > 0:
            return None
        if self._state is State.OPEN:
            self._state = State.HALF_OPEN
        return self._opened

    def answers(self, permit: int) -> None:
        """Notes that the endpoint has begun to answer a call."""
        if permit == self._opened and self._state is State.HALF_OPEN:
            self._close()

    def succeeds(self, permit: int) -> None:
        """Notes that a call succeeded."""
        if permit == self._opened:
            self._close()

    def fails(self, permit: int, now: float) -> None:
        """Notes that a call failed because of the endpoint."""
        if permit != self._opened:
            return
        self._in_a_row += 1
        if self._state is State.HALF_OPEN or self._in_a_row >= self._failures:
            self._open(now + self._open_seconds)

    def is_given_up(self, permit: int, now: float) -> None:
        """Notes the end of a call that says nothing about the endpoint, such as a cancelled one."""
        if permit == self._opened and self._state is State.HALF_OPEN:
            self._open(now)

    def _close(self) -> None:
        self._state = State.CLOSED
        self._in_a_row = 0

    def _open(self, until: float) -> None:
        self._state = State.OPEN
        self._opened += 1
        self._until = until
