"""An endpoint of a vendor (a base URL with a key), and the order in which a vendor's endpoints are tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from agentshell.provider.adapters.adapter import Adapter
from agentshell.provider.breaker import Breaker
from agentshell.provider.slots import Slots

MOST_REST_SECONDS = 300.0


class Health(IntEnum):
    """How fit an endpoint is for a call; the fittest is tried first."""

    READY = 0
    FULL = 1
    RESTING = 2
    REFUSING = 3


@dataclass(slots=True, eq=False)
class Endpoint:
    """An adapter at one base URL with one key, and its recent record. `label` is like `openai#1`, never the key."""

    label: str
    adapter: Adapter
    weight: int
    breaker: Breaker
    slots: Slots
    resting_until: float = 0.0

    def health(self, now: float) -> Health:
        """Returns how fit it is. If its breaker would permit a trial it is not REFUSING, or it would never be tried."""
        if self.breaker.refused_seconds(now) > 0:
            return Health.REFUSING
        if now < self.resting_until:
            return Health.RESTING
        return Health.FULL if self.slots.is_full else Health.READY

    def rest(self, now: float, seconds: float) -> None:
        """Has other endpoints tried first for a while, after a rate limit or a refused key."""
        self.resting_until = max(self.resting_until, now + min(seconds, MOST_REST_SECONDS))


def in_order(endpoints: Sequence[Endpoint], now: float, random: Callable[[], float]) -> list[Endpoint]:
    """Returns endpoints in the order to try them: fittest first, and equals at random by their weights."""
    if len(endpoints) == 1:
        return [endpoints[0]]
    healths = [endpoint.health(now) for endpoint in endpoints]
    order = weighted_order(healths, [endpoint.weight for endpoint in endpoints], [random() for _ in endpoints])
    return [endpoints[index] for index in order]


def weighted_order(ranks: Sequence[int], weights: Sequence[int], chances: Sequence[float]) -> list[int]:
    """Returns the indices by rank and, within a rank, drawn one by one in proportion to their weights. Pure.

    `chances` are independent, in [0, 1). Of several exponentially distributed times with rates `weight`, each is the
    first with a probability of its weight divided by their sum, and the same holds for those that remain.
    """
    times = [-math.log1p(-chance) / weight for chance, weight in zip(chances, weights, strict=True)]
    return sorted(range(len(times)), key=lambda index: (ranks[index], times[index]))
