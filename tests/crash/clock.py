"""A wall clock that jumps, for the modules of the shell alone: gRPC's deadlines are the machine's to keep."""

from __future__ import annotations

import datetime as real_datetime
import sys
import time as real_time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

_MODULES = ("agentshell.", "google.protobuf.internal.well_known_types", "jwt.")


def install(offset_seconds: Callable[[], int]) -> None:
    """Has `time.time`, `time.time_ns` and `datetime.now` be off by what `offset_seconds` returns at the moment."""

    class Datetime(real_datetime.datetime):
        """Tells the time of the clock that jumps; all else is as ever."""

        @classmethod
        def now(cls, tz: real_datetime.tzinfo | None = None) -> Any:
            return real_datetime.datetime.now(tz) + real_datetime.timedelta(seconds=offset_seconds())

    clock = SimpleNamespace(**vars(real_time))
    clock.time = lambda: real_time.time() + offset_seconds()
    clock.time_ns = lambda: real_time.time_ns() + offset_seconds() * 1_000_000_000
    # A call within a module that names the whole `datetime` module.
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
