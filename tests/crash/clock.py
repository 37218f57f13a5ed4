"""A wall clock that jumps, for the shell's modules only: gRPC's deadlines keep to the machine's clock."""

from __future__ import annotations

import datetime as real_datetime
import sys
import time as real_time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

_MODULES = ("agentshell.", "google.protobuf.internal.well_known_types", "jwt.")


def install(offset_seconds: Callable[[], int]) -> None:
    """Shifts `time.time`, `time.time_ns` and `datetime.now` by what `offset_seconds` returns on each call."""

    class Datetime(real_datetime.datetime):
        """`now` returns the shifted time; everything else is unchanged."""

        @classmethod
        def now(cls, tz: real_datetime.tzinfo | None = None) -> Any:
            return real_datetime.datetime.now(tz) + real_datetime.timedelta(seconds=offset_seconds())

    clock = SimpleNamespace(**vars(real_time))
    clock.time = lambda: real_time.time() + offset_seconds()
    clock.time_ns = lambda: real_time.time_ns() + offset_seconds() * 1_000_000_000
    # For modules that import the whole `datetime` module.
    calendar = SimpleNamespace(**vars(real_datetime))
    calendar.datetime = Datetime
    stand_ins: list[tuple[Any, Any]] = [
        (real_time, clock),
        (real_datetime, calendar),
        (real_datetime.datetime, Datetime),
    ]
    for name, module in list(sys.modules.items()):
        if name.startswith(_MODULES):
            for variable, value in list(vars(module).items()):
                for real, stand_in in stand_ins:
                    if value is real:
                        setattr(module, variable, stand_in)
