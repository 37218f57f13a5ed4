"""Shares numbers between the explorer and a process under fire, in a file that both map.

The file survives the process, and can be read and written at any time in between.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

# Operations with a boundary on either side: before the operation, and after it but before its caller sees the result.
POINTS = (
    "append to agent.turns",
    "append to agent.outputs",
    "append to agent.outputs and agent.turns",
    "append to agent.turns and agent.steps",
    "commit",
    "poll",
    "join",
    "claim a turn in the index",
    "save turns in the index",
    "park a turn",
    "load a parked turn",
    "forget a parked turn",
    "conclude a turn",
    "run a model step",
    "run a plan's memory step",
    "run a tool step",
    "run an http step",
    "run an agent step",
    "run a noop step",
)
BETWEEN = "between agent.turns and agent.steps"
BOUNDARIES = (*(f"{when} {point}" for point in POINTS for when in ("before", "after")), BETWEEN)
FAULTS = ("request dropped", "reply dropped", "delayed", "doubled", "overtaken", "read delayed", "unreachable")

_SLOT = struct.Struct("=q")
_CLOCK, _FAULTS, _SPLIT, _KILL, _LEFT, _COUNTS = range(6)
_NAMES = (*BOUNDARIES, *FAULTS)

P = ParamSpec("P")
R = TypeVar("R")


class Page:
    """The numbers of one process. `counts` has how often each boundary was met, and each fault made, since `arm`."""

    def __init__(self, path: Path) -> None:
        size = _SLOT.size * (_COUNTS + len(_NAMES))
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)

    @property
    def clock_seconds(self) -> int:
        """How far off the process's clock is."""
        return self._get(_CLOCK)

    @clock_seconds.setter
    def clock_seconds(self, seconds: int) -> None:
        self._set(_CLOCK, seconds)

    @property
    def faults_per_mille(self) -> int:
        """How many of 1000 log calls go wrong."""
        return self._get(_FAULTS)

    @faults_per_mille.setter
    def faults_per_mille(self, share: int) -> None:
        self._set(_FAULTS, share)

    @property
    def is_split(self) -> bool:
        """Whether an append to several topics goes topic by topic, as in a log without transactions."""
        return bool(self._get(_SPLIT))

    @is_split.setter
    def is_split(self, is_split: bool) -> None:
        self._set(_SPLIT, is_split)

    def arm(self, boundary: str = "", nth: int = 0) -> Self:
        """Clears the counts; the process dies when it meets the boundary for the nth time from now. None: never."""
        self._set(_LEFT, 0)
        for index in range(len(_NAMES)):
            self._set(_COUNTS + index, 0)
        self._set(_KILL, BOUNDARIES.index(boundary) if boundary else -1)
        self._set(_LEFT, nth)
        return self

    @property
    def counts(self) -> Mapping[str, int]:
        """The boundaries met and faults made, with how often."""
        return {name: count for index, name in enumerate(_NAMES) if (count := self._get(_COUNTS + index))}

    def met(self, name: str) -> None:
        """Counts a boundary or a fault, and kills this process if it is the one armed for."""
        index = _NAMES.index(name)
        self._set(_COUNTS + index, self._get(_COUNTS + index) + 1)
        if index == self._get(_KILL) and (left := self._get(_LEFT)):
            self._set(_LEFT, left - 1)
            if left == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, point: str, call: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Returns the call with a boundary on either side."""

        @wraps(call)
        async def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            self.met(f"before {point}")
            result = await call(*args, **kwargs)
            self.met(f"after {point}")
            return result

        return watched

    def _get(self, slot: int) -> int:
        (value,) = _SLOT.unpack_from(self._map, slot * _SLOT.size)
        return value

    def _set(self, slot: int, value: int) -> None:
        _SLOT.pack_into(self._map, slot * _SLOT.size, value)
