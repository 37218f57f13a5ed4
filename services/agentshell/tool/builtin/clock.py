"""The tool that tells the time."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from agentshell.tool.arguments import ArgumentError

TimeZone = Annotated[
    str, Field(min_length=1, max_length=64, description="IANA name of a time zone, such as Europe/Vienna.")
]


class Now(BaseModel):
    """What the clock says."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    time: AwareDatetime
    """ISO 8601, with the zone's offset from UTC."""
    weekday: str
    """The day of the week there, in English."""


async def clock(*, time_zone: TimeZone = "UTC") -> Now:
    """Tells the date and time now in a time zone."""
    try:
        now = datetime.now(ZoneInfo(time_zone))
    except (KeyError, ValueError, OSError):  # No such zone; not a name; a directory of zones, such as Europe.
        raise ArgumentError("time_zone", f"no time zone {time_zone!r}; write one such as Europe/Vienna") from None
    return Now(time=now, weekday=_WEEKDAYS[now.weekday()])


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")  # Whatever the locale.
