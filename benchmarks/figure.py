"""One figure of a run: ours, the peer's, and the goal."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.table import Table

_SIGNIFICANT_DIGITS = 3


class Goal(NamedTuple):
    """What a figure should reach. For information only: nothing fails because of it."""

    what: Literal["ours", "ratio"]
    relation: Literal["<=", ">="]
    value: float

    def __str__(self) -> str:
        return f"{self.what} {self.relation} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """`ours` and `peer` are in `unit`; `settings` says what both had to do, durability first."""

    name: str
    unit: str
    ours: float
    peer_name: str = ""
    peer: float | None = None
    goal: Goal | None = None
    settings: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours to the peer's."""
        return self.ours / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether it reaches its goal; None if there is none."""
        value = self.goal and (self.ours if self.goal.what == "ours" else self.ratio)
        if self.goal is None or value is None:
            return None
        return value <= self.goal.value if self.goal.relation == "<=" else value >= self.goal.value


def median(values: Sequence[float]) -> float:
    """Returns the median."""
    return percentile(values, 50)


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest value that `percent` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def machine() -> str:
    """Returns a description of the machine, on which the figures depend most."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(cpus)} x {cpus[0].partition(': ')[2]}, {platform.system()}, Python {platform.python_version()}"


def to_json(figures: Sequence[Figure], load: float) -> list[dict[str, Any]]:
    """Returns the figures in the form of results.json; `load` is the machine's load average before the run."""
    date, where = datetime.now(UTC).date().isoformat(), f"{machine()}, load {load:.1f} before"
    return [
        {
            "name": figure.name,
            "unit": figure.unit,
            "ours": _rounded(figure.ours),
            "peer": _rounded(figure.peer),
            "peer_name": figure.peer_name,
            "ratio": _rounded(figure.ratio),
            "goal": str(figure.goal or ""),
            "settings": figure.settings,
            "machine": where,
            "date": date,
        }
        for figure in figures
    ]


def to_table(figures: Sequence[Figure]) -> Table:
    """Returns the figures as a table for people to read."""
    table = Table("figure", "unit", box=None, header_style="dim", pad_edge=False)
    for column in ("ours", "peer's", "ratio"):
        table.add_column(column, justify="right")
    table.add_column("peer")
    table.add_column("goal")
    for figure in figures:
        style = {True: "green", False: "red", None: ""}[figure.met]
        numbers = ("" if n is None else f"{_rounded(n):g}" for n in (figure.ours, figure.peer, figure.ratio))
        table.add_row(figure.name, figure.unit, *numbers, figure.peer_name, str(figure.goal or ""), style=style)
    return table


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
