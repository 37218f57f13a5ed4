"""Reserves what a call may spend before it, and settles and records what it spent after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agentshell.content import add_usage
from agentshell.mesh import call
from agentshell.provider.budget import Budgets, Limit, Reservation
from agentshell.provider.metering import Spent
from agentshell.provider.pricing import CURRENCY_CODE, Prices
from agentshell.provider.routing import Candidate
from agentshell.provider.usage import Usages
from agentshell.provider.vendors import Vendors
from kfm.content.v1.content_pb2 import Money, Usage
from kfm.provider.v1 import provider_service_pb2 as pb


class Most(NamedTuple):
    """The most tokens a call reads and writes. No model counts more than `input_bound`; `input_tokens` is an estimate.

    Money is reserved by the bound, so it is never overspent. Token limits use the estimate: the bound would make them
    useless.
    """

    input_tokens: int
    input_bound: int
    output_tokens: int


class Ledger:
    """Keeps the books for all calls of this process."""

    def __init__(self, vendors: Vendors, prices: Prices, budgets: Budgets, usages: Usages) -> None:
        self._vendors = vendors
        self._prices = prices
        self._budgets = budgets
        self._usages = usages

    def limits(self, purpose: pb.Purpose) -> list[Limit]:
        """Returns the limits on what the caller may spend on a purpose."""
        return self._budgets.limits(call.current().principal, purpose)

    async def reserve(self, limits: Sequence[Limit], candidates: Sequence[Candidate], most: Most) -> Reservation:
        """Reserves the most that a call may use.

        Raises BUDGET_EXHAUSTED, TOKEN_LIMIT, PRICE_UNKNOWN, DATABASE_UNAVAILABLE.
        """
        cost = self._cost_of(candidates, most)
        return await self._budgets.reserve(limits, most.input_tokens + most.output_tokens, cost)

    async def settle(self, purpose: pb.Purpose, reservation: Reservation | None, spent: Sequence[Spent]) -> None:
        """Records what a call spent, however it ended, and settles its reservation with that.

        This completes even if the caller is cancelled and does not wait for it.
        """
        self._usages.add(call.current().principal, purpose, spent)
        if reservation is not None:
            used = total(spent)
            cost = used.cost.amount_micros if used.HasField("cost") else None
            await self._budgets.settle(reservation, used.input_tokens + used.output_tokens, cost)

    def _cost_of(self, candidates: Sequence[Candidate], most: Most) -> int | None:
        bounds = [
            self._prices.bound(self._vendors.prices_name(provider), model, most.input_bound, most.output_tokens)
            for provider, model in candidates
        ]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if len(known) == len(bounds) else None


def total(spent: Sequence[Spent]) -> Usage:
    """Returns the total usage of calls. The cost is unknown if any call's is."""
    if len(spent) == 1:
        return spent[0].usage
    used = Usage(cost=Money(currency_code=CURRENCY_CODE))
    for each in spent:
        add_usage(used, each.usage)
    return used
