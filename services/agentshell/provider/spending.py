"""Records what was spent, by account: a process's claims and changes go in batches, one round trip and commit each.

What arrives while a batch is under way forms the next one. If several calls began together, more are likely to follow,
and the next batch waits GATHERING_SECONDS for them: a statement costs more than everything in it. A lone caller never
waits. Each batch counts once: if its answer is lost, it is sent again under the same number until Postgres says what
became of it.

Nothing waits for Postgres' disk (synchronous_commit is off): a vendor is asked one round trip after the call, not one
flush after it. What a crash of Postgres loses, this process still knows, and writes again before anything else. So only
a crash of the whole machine, or of both at once, can forget what was spent, and only that of the last moments, which
Postgres had not flushed (three times wal_writer_delay, 0.6 s by default).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import structlog
from psycopg.pq.abc import PGresult

from agentshell.db.binary import bigint, bigints, integers, texts
from agentshell.db.database import Connection, Database
from agentshell.db.statement import Statement
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

MAX_BATCH_CLAIMS = 256
MAX_WAITING_CLAIMS = 10_000
GATHERING_SECONDS = 0.004
STATEMENT_SECONDS = 5.0
RETRY_SECONDS = 1.0
# After this many batches, one waits for the disk, and so flushes all before it. Older ones get there by themselves:
# Postgres leaves nothing unflushed for longer than half a minute, whatever wal_writer_delay is.
MAX_UNFLUSHED_BATCHES = 1000
_FLUSHED_SECONDS = 60.0

_SPEND = """
SELECT * FROM provider.spend(
    $1::bytea, $2::bigint, $3::boolean, $4::text[], $5::text[], $6::integer[], $7::bigint[],
    $8::integer[], $9::integer[], $10::bigint[], $11::bigint[]
)
"""
_WRITTEN = "SELECT batch FROM provider.writers WHERE writer_id = %s"
_AGAIN = """
SELECT FROM provider.spend(%s, %s, true, %s::text[], %s::text[], %s::integer[], %s::bigint[], '{}', '{}', '{}', '{}')
"""
_logger = structlog.get_logger(__name__)


class Account(NamedTuple):
    """Where spending is counted. It is deleted `kept_days` after its first use."""

    tenant_id: str
    name: str
    kept_days: int


class Entry(NamedTuple):
    """What a claim asks of an account, and the most that may be spent there."""

    account: Account
    asked: int
    most: int


class Refusal(NamedTuple):
    """The first entry that did not fit, and what had been spent there at that moment."""

    entry: Entry
    spent: int


@dataclass(slots=True, eq=False)
class _Claim:
    entries: Sequence[Entry]
    done: asyncio.Future[Refusal | None]


@dataclass(slots=True, eq=False)
class _Batch:
    number: int
    claims: list[_Claim]
    changes: dict[Account, int]
    changed: list[asyncio.Future[None]]


class _Written(NamedTuple):
    """A batch that Postgres has, perhaps not on disk yet, and what it added to accounts."""

    number: int
    changes: Mapping[Account, int]
    time: float


class Spending:
    """The accounts of all tenants. The schema must exist (Database.migrate) before this opens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statement = Statement(self._connect, _SPEND)
        self._writer_id = os.urandom(16)
        self._number = 0
        self._claims: deque[_Claim] = deque()
        self._changes: dict[Account, int] = {}
        self._changed: list[asyncio.Future[None]] = []
        self._unsure: _Batch | None = None  # It is unknown whether this was written.
        self._unflushed: list[_Written] = []
        self._arrived = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts writing."""
        self._task = asyncio.create_task(self._run(), name="provider spending")

    async def close(self) -> None:
        """Writes what is waiting, if Postgres answers, and stops."""
        self._closed = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        await self._statement.close()

    async def claim(self, entries: Sequence[Entry]) -> Refusal | None:
        """Spends on all the accounts, which must differ, and returns None; or spends nothing and returns why not.

        Raises DATABASE_UNAVAILABLE; then, or if cancelled, nothing stays spent once Postgres answers again.
        """
        if self._closed or len(self._claims) >= MAX_WAITING_CLAIMS:
            raise _unavailable("is closed" if self._closed else f"has {MAX_WAITING_CLAIMS} calls waiting")
        claim = _Claim(entries, asyncio.get_running_loop().create_future())
        self._claims.append(claim)
        self._arrived.set()
        try:
            return await claim.done
        except asyncio.CancelledError:
            if claim.done.done() and not claim.done.cancelled() and not claim.done.exception():
                self._give_back(claim, claim.done.result())  # Cancelled after the answer came but before we saw it.
            raise

    async def change(self, changes: Iterable[tuple[Account, int]]) -> None:
        """Adds to accounts, never below 0. Returns once that is stored, or when Postgres does not answer.

        In that case it is stored later, even if nobody waits for it any more: it is lost only with the process, or if
        the statement itself fails.
        """
        if self._task is None or self._task.done():
            return
        for account, amount in changes:
            self._changes[account] = self._changes.get(account, 0) + amount
        self._changed.append(asyncio.get_running_loop().create_future())
        self._arrived.set()
        await self._changed[-1]

    async def _run(self) -> None:
        while True:
            if not (self._unsure or self._claims or self._changes or self._closed):
                await self._arrived.wait()
            self._arrived.clear()
            batch = self._unsure or self._take()
            if batch is None:
                if self._closed:
                    return
            elif not await self._write(batch):
                if self._closed:
                    _logger.error("provider.spending.lost", changes=len(batch.changes) + len(self._changes))
                    return
                await self._pause()
            elif len(batch.claims) > 1:
                await asyncio.sleep(GATHERING_SECONDS)

    def _take(self) -> _Batch | None:
        """Takes the next batch: all changes, and claims in order."""
        claims: list[_Claim] = []
        while self._claims and len(claims) < MAX_BATCH_CLAIMS:
            claim = self._claims.popleft()
            if not claim.done.done():  # Otherwise its caller has given up.
                claims.append(claim)
        changes, self._changes = self._changes, {}
        changed, self._changed = self._changed, []
        if not claims and not changes:
            _release(changed)
            return None
        self._number += 1
        return _Batch(self._number, claims, changes, changed)

    async def _write(self, batch: _Batch) -> bool:
        """Returns whether the outcome of a batch is known. If not, it is sent again, and whoever waits is refused."""
        self._unsure = batch
        flushed = len(self._unflushed) >= MAX_UNFLUSHED_BATCHES
        try:
            async with asyncio.timeout(STATEMENT_SECONDS):
                refusals = _refusals(batch, await self._statement.run(_parameters(self._writer_id, batch, flushed)))
        except Exception as error:
            if isinstance(error, TimeoutError) or _is_unavailable(error):
                waiting, self._claims = [*batch.claims, *self._claims], deque()
                _refuse(waiting, "did not answer", error)
                _release(batch.changed)
                _release(self._changed)
                return False
            # It would fail again, so it is dropped: what it would have given back stays spent.
            _logger.exception("provider.spending.failed", claims=len(batch.claims), changes=len(batch.changes))
            self._unsure = None
            _refuse(batch.claims, "failed", error)
            _release(batch.changed)
            return True
        self._unsure = None
        if flushed:
            self._unflushed.clear()
        else:
            self._unflushed.append(_Written(batch.number, _done(batch, refusals), time.monotonic()))
        for claim, refusal in zip(batch.claims, refusals, strict=True):
            if claim.done.done():
                self._give_back(claim, refusal)
            else:
                claim.done.set_result(refusal)
        _release(batch.changed)
        return True

    async def _connect(self) -> Connection:
        """Connects, and writes again what a crash of Postgres lost, before anything is decided without it."""
        connection = await self._database.dedicated()
        try:
            since = time.monotonic() - _FLUSHED_SECONDS
            recent = [batch for batch in self._unflushed if batch.time > since]
            if recent:
                row = await (await connection.execute(_WRITTEN, [self._writer_id])).fetchone()
                lost: Counter[Account] = Counter()
                for batch in recent:
                    if row is None or batch.number > row[0]:
                        lost.update(batch.changes)
                if lost:
                    columns = [list(column) for column in zip(*lost, strict=True)]
                    again = [self._writer_id, recent[-1].number, *columns, list(lost.values())]
                    await connection.execute(_AGAIN, again)
                    _logger.warning("provider.spending.written_again", accounts=len(lost))
        except BaseException:
            await connection.close()
            raise
        return connection

    def _give_back(self, claim: _Claim, refusal: Refusal | None) -> None:
        """Gives back what was granted to a caller that has gone."""
        if refusal is None:
            for account, asked, _ in claim.entries:
                self._changes[account] = self._changes.get(account, 0) - asked
            self._arrived.set()

    async def _pause(self) -> None:
        """Waits before Postgres is asked again, until somebody needs it or for at most a second."""
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await self._arrived.wait()
        except TimeoutError:
            pass


def _parameters(writer_id: bytes, batch: _Batch, flushed: bool) -> list[bytes]:
    accounts = dict(batch.changes)
    for claim in batch.claims:
        for entry in claim.entries:
            accounts.setdefault(entry.account, 0)
    numbers = {account: number for number, account in enumerate(accounts, 1)}
    entries = [entry for claim in batch.claims for entry in claim.entries]
    ends: list[int] = []
    for claim in batch.claims:
        ends.append((ends[-1] if ends else 0) + len(claim.entries))
    return [
        writer_id,
        bigint(batch.number),
        bytes([flushed]),
        texts([account.tenant_id for account in accounts]),
        texts([account.name for account in accounts]),
        integers([account.kept_days for account in accounts]),
        bigints(list(accounts.values())),
        integers(ends),
        integers([numbers[entry.account] for entry in entries]),
        bigints([entry.asked for entry in entries]),
        bigints([entry.most for entry in entries]),
    ]


def _refusals(batch: _Batch, result: PGresult) -> list[Refusal | None]:
    if result.ntuples != len(batch.claims):
        raise ValueError(f"{result.ntuples} answers to {len(batch.claims)} claims")
    found: list[Refusal | None] = []
    for row, claim in enumerate(batch.claims):
        refused_by = int.from_bytes(result.get_value(row, 0) or b"")
        spent = int.from_bytes(result.get_value(row, 1) or b"")
        found.append(Refusal(claim.entries[refused_by - 1], spent) if refused_by else None)
    return found


def _done(batch: _Batch, refusals: Sequence[Refusal | None]) -> Mapping[Account, int]:
    """Returns what a batch added to accounts."""
    done = Counter(batch.changes)
    for claim, refusal in zip(batch.claims, refusals, strict=True):
        if refusal is None:
            for account, asked, _ in claim.entries:
                done[account] += asked
    return done


def _refuse(claims: Iterable[_Claim], problem: str, cause: Exception) -> None:
    for claim in claims:
        if not claim.done.done():
            claim.done.set_exception(_unavailable(problem, cause))


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
    waiting.clear()


def _is_unavailable(error: Exception) -> bool:
    return isinstance(error, AgentShellError) and error.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE


def _unavailable(problem: str, cause: Exception | None = None) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE,
        f"the store of budgets {problem}, and nothing is spent without it: check that Postgres runs, then try again",
        retry_delay=timedelta(seconds=RETRY_SECONDS),
        cause=cause,
    )
