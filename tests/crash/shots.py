"""Decides before a run where the mesh is killed, from the seed and the counted boundaries alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tests.crash.page import BOUNDARIES

_LONGEST_SECONDS = 0.6  # About as long as a run of the script.
_FAULTS_PER_MILLE = 40
_HOUR_SECONDS = 3600
_HOURS_OFF = (-5, -1, 0, 2, 6)
_JUMPS = 5  # a run


@dataclass(frozen=True, slots=True)
class Shot:
    """Kills `process` (empty: all) when it meets a boundary for the nth time, or after `seconds`."""

    process: str
    boundary: str = ""
    nth: int = 0
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        """The name it is counted under."""
        return self.boundary or "at any instant"


@dataclass(frozen=True, slots=True)
class Weather:
    """What else goes wrong in a run: log calls, and the clock.

    `jumps`: pairs of a delay since the last jump and the clock's new offset, both in seconds.
    """

    faults_per_mille: int = 0
    jumps: Sequence[tuple[float, int]] = ()


def sweep(counts: Mapping[str, Mapping[str, int]], random: Random) -> list[Shot]:
    """Returns a shot for every boundary that each process met: one of each kind first, then the others, shuffled."""
    firsts, others = list[Shot](), list[Shot]()
    for process, met in counts.items():
        for boundary in BOUNDARIES:
            shots = [Shot(process, boundary, nth + 1) for nth in range(met.get(boundary, 0))]
            random.shuffle(shots)
            firsts += shots[:1]
            others += shots[1:]
    random.shuffle(firsts)
    random.shuffle(others)
    return firsts + others


def instant(processes: Mapping[str, object], random: Random) -> Shot:
    """Returns a shot at a random instant, at one process or at all of them."""
    return Shot(random.choice(["", *processes]), seconds=random.uniform(0.01, _LONGEST_SECONDS))


def storm(random: Random) -> Weather:
    """Returns weather: a faulty log, a clock that jumps, both, or neither."""
    jumps = [(random.uniform(0, _LONGEST_SECONDS), _HOUR_SECONDS * random.choice(_HOURS_OFF)) for _ in range(_JUMPS)]
    return Weather(_FAULTS_PER_MILLE * random.randrange(2), jumps if random.randrange(2) else ())
