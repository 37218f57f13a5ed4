"""Budgets: the most that a call may cost is reserved before it, and what it did cost is settled after it.

A reservation counts as spent until it is settled, so that no crash of a process or of Postgres frees what may have been
billed (spending.py says what a crash of the machine may free). Of concurrent calls, in any number of processes, only as
many pass as fit, to the micro-USD and the token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from agentshell.db.database import Database
from agentshell.mesh.call import Principal
from agentshell.mesh.config import BudgetConfig, ProviderConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.provider.spending import Account, Entry, Refusal, Spending
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

MICROS = 1_000_000
# Accounts are kept a little longer than they are needed; a turn that waits longer than this starts from zero.
_KEPT_DAYS = {"day": 3, "month": 34, "turn": 90}


class _Rule(NamedTuple):
    """A budget of money or of tokens, for the current period."""

    budget: BudgetConfig
    of_cost: bool
    most: int
    """Micro-USD or tokens."""
    prefix: str
    """How the names of its accounts begin; the rest says whose budget it is."""
    reset_time: datetime


class Limit(NamedTuple):
    """The most that may be spent on an account under a rule; without a rule, a turn's token limit."""

    account: Account
    subject: str
    most: int
    rule: _Rule | None

    @property
    def of_cost(self) -> bool:
        return self.rule is not None and self.rule.of_cost


@dataclass(slots=True, eq=False)
class Reservation:
    """What is reserved for one call, until it is settled."""

    entries: tuple[tuple[Limit, int], ...] = ()
    settled: bool = False


class Budgets:
    """The configured budgets, and turns' token limits.

    Days and months are in UTC, at the moment of the reservation: a call that ends in the next period counts in the one
    it began in. A budget per session applies to calls that name a session.
    """

    def __init__(self, config: ProviderConfig, database: Database, now: Callable[[], datetime] | None = None) -> None:
        self._budgets = config.budgets
        self._today = date.min
        self._rules: list[_Rule] = []
        self._spending = Spending(database)
        self._now = now or _now

    async def open(self) -> None:
        """Starts writing. The schema must exist (Database.migrate)."""
        await self._spending.open()

    async def close(self) -> None:
        """Writes what is still waiting."""
        await self._spending.close()

    def limits(self, principal: Principal, purpose: pb.Purpose) -> list[Limit]:
        """Returns the limits that apply to a call, one per account."""
        limits: dict[Account, Limit] = {}
        for rule in self._current_rules():
            subject = _subject(rule.budget, principal, purpose)
            if subject:
                account = _account(principal, rule.prefix + subject, _KEPT_DAYS[rule.budget.period])
                if account not in limits or rule.most < limits[account].most:
                    limits[account] = Limit(account, subject, rule.most, rule)
        if purpose.turn_id and purpose.HasField("max_turn_tokens"):
            account = _account(principal, f"turn/{purpose.turn_id}", _KEPT_DAYS["turn"])
            limits[account] = Limit(account, purpose.turn_id, purpose.max_turn_tokens, None)
        return list(limits.values())

    async def reserve(self, limits: Sequence[Limit], most_tokens: int, most_cost_micros: int | None) -> Reservation:
        """Reserves the most that a call may use and cost, against all of its limits or none.

        Raises BUDGET_EXHAUSTED, TOKEN_LIMIT for the turn's limit, PRICE_UNKNOWN if a budget of money applies and the
        cost is None, and DATABASE_UNAVAILABLE. A call that is refused or cancelled has nothing reserved.
        """
        asked: list[tuple[Limit, int]] = []
        for limit in limits:
            amount = most_cost_micros if limit.of_cost else most_tokens
            if amount is None:
                raise _price_unknown(limit)
            asked.append((limit, amount))
        if not asked:
            return Reservation(settled=True)
        refusal = await self._spending.claim([Entry(limit.account, amount, limit.most) for limit, amount in asked])
        if refusal is not None:
            (refused,) = (limit for limit, _ in asked if limit.account == refusal.entry.account)
            raise _refused(refused, refusal)
        return Reservation(tuple(asked))

    async def settle(self, reservation: Reservation, tokens: int, cost_micros: int | None) -> None:
        """Replaces what was reserved with what a call used; if its cost is None, the reserved cost stays spent.

        Returns once that is stored, so that whoever learns of the call's end, in any process, finds it settled; it is
        stored even if the caller is cancelled and does not wait. Never fails: without Postgres it is stored later, and
        the reservation stays spent if this process ends first. Settling again does nothing.
        """
        if reservation.settled:
            return
        reservation.settled = True
        used = ((limit, cost_micros if limit.of_cost else tokens, amount) for limit, amount in reservation.entries)
        changes = [(limit.account, actual - amount) for limit, actual, amount in used if actual not in (None, amount)]
        if changes:
            await self._spending.change(changes)

    def _current_rules(self) -> list[_Rule]:
        if self._budgets and self._today != (today := self._now().date()):
            self._today = today
            self._rules = [rule for budget in self._budgets for rule in _rules_of(budget, today)]
        return self._rules


def _now() -> datetime:
    return datetime.now(UTC)


def _rules_of(budget: BudgetConfig, today: date) -> list[_Rule]:
    start, end = today, today + timedelta(days=1)
    if budget.period == "month":
        start = today.replace(day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    reset_time = datetime(end.year, end.month, end.day, tzinfo=UTC)
    cost = None if budget.cost_usd is None else int(Decimal(str(budget.cost_usd)) * MICROS)
    return [
        _Rule(budget, kind == "cost", most, f"{budget.period}/{start}/{budget.per}/{kind}/", reset_time)
        for kind, most in (("cost", cost), ("tokens", budget.tokens))
        if most is not None
    ]


def _subject(budget: BudgetConfig, principal: Principal, purpose: pb.Purpose) -> str:
    """Returns whom a budget counts a call for; empty: it does not apply."""
    if budget.tenant not in ("", principal.tenant_id):
        return ""
    match budget.per:
        case "tenant":
            return principal.tenant_id
        case "principal":
            return principal.principal_id
        case "session":
            return purpose.session_id


def _account(principal: Principal, name: str, kept_days: int) -> Account:
    return Account(principal.tenant_id, name.replace("\0", "\ufffd"), kept_days)  # Postgres allows no NUL in text.


def _amount(limit: Limit, amount: int) -> str:
    return f"{amount // MICROS}.{amount % MICROS:06d} USD" if limit.of_cost else f"{amount} tokens"


def _refused(limit: Limit, refusal: Refusal) -> AgentShellError:
    most, spent, asked = (_amount(limit, n) for n in (limit.most, refusal.spent, refusal.entry.asked))
    metadata = {"limit": most, "spent": spent, "asked": asked}
    if not limit.of_cost:
        metadata["left_tokens"] = str(max(0, limit.most - refusal.spent))
    if limit.rule is None:
        description = f"{spent} of {most} are used or reserved"
        return AgentShellError(
            error_pb2.ERROR_REASON_TOKEN_LIMIT,
            f"turn {limit.subject} has too few tokens left: {description}, and this call may take {asked}; lower "
            "max_output_tokens, or raise the turn's limit",
            metadata=metadata,
            quotas=[(f"turn:{limit.subject}", description)],
        )
    budget, reset_time = limit.rule.budget, limit.rule.reset_time.strftime("%Y-%m-%dT%H:%M:%SZ")
    description = f"{spent} of {most} per {budget.period} are spent or reserved"
    return AgentShellError(
        error_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        f"the budget of {budget.per} {limit.subject} does not cover this call: {description}, and it may take {asked}; "
        f"lower max_output_tokens, wait for {reset_time}, or raise provider.budgets",
        metadata={"budget": f"{budget.per}/{budget.period}", **metadata, "reset_time": reset_time},
        quotas=[(f"{budget.per}:{limit.subject}", description)],
    )


def _price_unknown(limit: Limit) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_PRICE_UNKNOWN,
        f"a budget of {_amount(limit, limit.most)} applies to {limit.subject}, and what this call may cost is unknown: "
        "add its model to provider.prices_file, or use another model",
        metadata={"subject": limit.subject},
    )
