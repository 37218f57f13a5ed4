"""What calls may spend, reserved before, and what they spent, settled and written down after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from agentshell.content import add_usage
from agentshell.mesh import call
from agentshell.mesh.call import Principal
from agentshell.provider.budget import Budgets, Reservation
from agentshell.provider.metering import Spent
from agentshell.provider.pricing import CURRENCY_CODE, Prices
from agentshell.provider.routing import Candidate
from agentshell.provider.usage import Usages
from agentshell.provider.vendors import Vendors
from kfm.content.v1.content_pb2 import Money, Usage
from kfm.provider.v1 import provider_service_pb2 as pb


class Most(NamedTuple):
    """The most that a call reads and writes. No model counts more tokens than `input_bound`; `input_tokens` is likely.

    Money is reserved by the bound, and never overspent; limits of tokens would be of no use if they were kept by it.
    """

    input_tokens: int
    input_bound: int
    output_tokens: int


class Ledger:
    """Keeps the books of all calls of this process."""

    def __init__(self, vendors: Vendors, prices: Prices, budgets: Budgets, usages: Usages) -> None:
        self._vendors = vendors
        self._prices = prices
        self._budgets = budgets
        self._usages = usages
        self._settling: set[asyncio.Task[None]] = set()

    def bounds(self, purpose: pb.Purpose) -> bool:
        """Returns whether anything bounds what the caller may spend on a purpose."""
        return self._budgets.applies(call.current().principal, purpose)

    async def reserve(self, purpose: pb.Purpose, candidates: Sequence[Candidate], most: Most) -> Reservation | None:
        """Reserves the most that a call may use; None: nothing bounds it.

        Raises BUDGET_EXHAUSTED, TOKEN_LIMIT, PRICE_UNKNOWN, DATABASE_UNAVAILABLE.
        """
        principal = call.current().principal
        if not self._budgets.applies(principal, purpose):
            return None
        cost = self._cost_of(candidates, most)
        return await self._budgets.reserve(principal, purpose, most.input_tokens + most.output_tokens, cost)

    @asynccontextmanager
    async def account(self, purpose: pb.Purpose, reservation: Reservation | None) -> AsyncGenerator[list[Spent]]:
        """Gives the list that takes what the block's calls spend; it is settled at the block's end, however it ends."""
        principal = call.current().principal
        spent: list[Spent] = []
        try:
            yield spent
        finally:
            settling = asyncio.create_task(self._settle(principal, purpose, reservation, spent))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
            await asyncio.shield(settling)  # Who is cancelled has spent what it has.

    async def close(self) -> None:
        """Waits for what is being settled."""
        if self._settling:
            await asyncio.wait(self._settling)

    def _cost_of(self, candidates: Sequence[Candidate], most: Most) -> int | None:
        bounds = [
            self._prices.bound(self._vendors.prices_name(provider), model, most.input_bound, most.output_tokens)
            for provider, model in candidates
        ]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if len(known) == len(bounds) else None

    async def _settle(
        self, principal: Principal, purpose: pb.Purpose, reservation: Reservation | None, spent: Sequence[Spent]
    ) -> None:
        self._usages.add(principal, purpose, spent)
        if reservation is not None:
            used = total(spent)
            cost = used.cost.amount_micros if used.HasField("cost") else None
            await self._budgets.settle(reservation, used.input_tokens + used.output_tokens, cost)


def total(spent: Sequence[Spent]) -> Usage:
    """Returns what calls used together. The cost is unknown as soon as one call's is."""
    used = Usage(cost=Money(currency_code=CURRENCY_CODE))
    for each in spent:
        add_usage(used, each.usage)
    return used
