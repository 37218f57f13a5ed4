"""Records what calls to vendors used, by day, session, personality, model and principal: the ledger GetUsage reads.

It is written a second late, in one statement for all that came meanwhile. A process that is killed loses that second.
Budgets do not depend on it: what they reserved stays spent (budget.py), so no money is ever forgotten with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import structlog
from google.type import date_pb2
from psycopg import sql

from agentshell.db.database import Database
from agentshell.mesh import paging
from agentshell.mesh.call import Principal
from agentshell.mesh.errors import AgentShellError, invalid
from agentshell.provider.metering import Spent
from agentshell.provider.pricing import CURRENCY_CODE
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

FLUSH_SECONDS = 1.0
DEFAULT_ROWS = 100
MAX_ROWS = 1000
# Once this many rows wait (Postgres is down), usage is added up without its session: less detailed, but not lost.
MAX_WAITING_ROWS = 20_000

_logger = structlog.get_logger(__name__)

# What is counted, in the order of the table's columns.
_TOKENS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "image_input_tokens",
    "audio_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_output_tokens",
)
_COUNTS = ("calls", "failed_calls", "unpriced_calls", "estimated_calls", "cached_answers", "cost_micros", *_TOKENS)


class _Row(NamedTuple):
    """What a ledger row counts for, in the order of the table's columns."""

    tenant_id: str
    day: date
    session_id: str
    personality_id: str
    provider: str
    model: str
    principal_id: str


_KEYS = (*_Row._fields, "key")
_DIMENSIONS: Mapping[pb.UsageDimension.ValueType, tuple[str, ...]] = {
    pb.USAGE_DIMENSION_SESSION: ("session_id",),
    pb.USAGE_DIMENSION_PERSONALITY: ("personality_id",),
    pb.USAGE_DIMENSION_MODEL: ("provider", "model"),
    pb.USAGE_DIMENSION_PRINCIPAL: ("principal_id",),
}

# A batch whose answer was lost is sent again under its number, and counts once.
_ADD = sql.SQL("""
WITH batch AS (
    INSERT INTO provider.writers AS w (writer_id, batch) VALUES (%s, %s)
    ON CONFLICT (writer_id) DO UPDATE SET batch = excluded.batch, write_time = now() WHERE w.batch < excluded.batch
    RETURNING w.batch
)
INSERT INTO provider.usage AS u ({columns})
SELECT a.* FROM batch, unnest({arrays}) AS a ({columns}) ORDER BY a.tenant_id, a.day, a.key
ON CONFLICT (tenant_id, day, key) DO UPDATE SET {sums}
""").format(
    columns=sql.SQL(", ").join(map(sql.Identifier, (*_KEYS, *_COUNTS))),
    arrays=sql.SQL(", ").join(
        [sql.SQL("%s::date[]") if name == "day" else sql.SQL("%s::text[]") for name in _Row._fields]
        + [sql.SQL("%s::bytea[]")]
        + [sql.SQL("%s::bigint[]")] * len(_COUNTS)
    ),
    sums=sql.SQL(", ").join(sql.SQL("{0} = u.{0} + excluded.{0}").format(sql.Identifier(name)) for name in _COUNTS),
)


class _Batch(NamedTuple):
    number: int
    rows: dict[_Row, list[int]]


class Usages:
    """The ledger of all tenants. The schema must exist (Database.migrate)."""

    def __init__(self, database: Database, now: Callable[[], datetime] | None = None) -> None:
        self._database = database
        self._now = now or _now
        self._writer_id = os.urandom(16)
        self._number = 0
        self._rows: dict[_Row, list[int]] = {}
        self._batch: _Batch | None = None  # Under way, or it is unknown whether it was written.
        self._writing = asyncio.Lock()
        self._flushing: asyncio.Task[None] | None = None

    def add(self, principal: Principal, purpose: pb.Purpose, spent: Sequence[Spent]) -> None:
        """Counts what calls used. It reaches the ledger within about a second, or later if Postgres does not answer."""
        for each in spent:
            counts = self._counts(principal, purpose, each)
            for column, count in enumerate(_counted(each)):
                counts[column] += count
        if self._rows and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_soon(), name="provider usage")

    async def flush(self) -> None:
        """Writes what is waiting. Keeps it and raises DATABASE_UNAVAILABLE if that fails."""
        async with self._writing:
            while self._batch or self._rows:
                if self._batch is None:
                    self._number += 1
                    self._batch, self._rows = _Batch(self._number, self._rows), {}
                await self._write(self._batch)
                self._batch = None

    async def close(self) -> None:
        """Writes what is waiting, if Postgres answers."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
        try:
            await self.flush()
        except AgentShellError as error:
            _logger.error("provider.usage.lost", rows=len(self._rows), problem=error.message)

    async def rows(self, tenant_id: str, request: pb.GetUsageRequest) -> pb.GetUsageResponse:
        """Returns a page of what a tenant used, including all that this process has counted so far.

        Raises INVALID_REQUEST for bad dates, PAGE_TOKEN_INVALID and DATABASE_UNAVAILABLE.
        """
        columns = [column for dimension in sorted(request.dimensions) for column in _DIMENSIONS[dimension]]
        after = paging.decode(request, request.page_token, date.fromisoformat, *[str] * len(columns))
        limit = paging.page_size(request.page_size, DEFAULT_ROWS, MAX_ROWS)
        start = _date("start_date", request.start_date) if request.HasField("start_date") else date.min
        end = _date("end_date", request.end_date) if request.HasField("end_date") else date.max
        if start > end:
            raise invalid("start_date", f"{start} is after end_date, {end}: swap them, or leave one out")
        values: dict[str, Any] = {
            "tenant_id": tenant_id,
            "start_date": start,
            "end_date": end,
            "session_id": _text(request.session_id),
            "personality_id": _text(request.personality_id),
            "after_day": after[0] if after else date.max,
            "after": after[1:] if after else [],
            "limit": limit + 1,
        }
        await self.flush()
        async with self._database.connection() as connection:
            found = await (await connection.execute(_query(columns), values)).fetchall()
        response = pb.GetUsageResponse(rows=[_row(columns, values) for values in found[:limit]])
        if len(found) > limit:
            day, *position = found[limit - 1][: 1 + len(columns)]
            response.next_page_token = paging.encode(request, day.isoformat(), *position)
        return response

    def _counts(self, principal: Principal, purpose: pb.Purpose, spent: Spent) -> list[int]:
        session_id = purpose.session_id if len(self._rows) < MAX_WAITING_ROWS else ""
        row = _Row(
            principal.tenant_id,
            self._now().date(),
            _text(session_id),
            _text(purpose.personality_id),
            spent.provider,
            _text(spent.model),
            principal.principal_id,
        )
        counts = self._rows.get(row)
        if counts is None:
            counts = self._rows[row] = [0] * len(_COUNTS)
        return counts

    async def _flush_soon(self) -> None:
        while self._rows or self._batch:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
            except AgentShellError as error:
                _logger.warning("provider.usage.late", rows=len(self._rows), problem=error.message)
        self._flushing = None

    async def _write(self, batch: _Batch) -> None:
        rows = sorted(batch.rows)
        keys = [hashlib.blake2b("\0".join(row[2:]).encode(), digest_size=16).digest() for row in rows]
        columns = [list(column) for column in (*zip(*rows, strict=True), keys)]
        counts = [list(column) for column in zip(*(batch.rows[row] for row in rows), strict=True)]
        async with self._database.connection() as connection:
            await connection.execute(_ADD, [self._writer_id, batch.number, *columns, *counts])


def _now() -> datetime:
    return datetime.now(UTC)


def _text(value: str) -> str:
    """Returns a text that Postgres accepts: without NUL."""
    return value.replace("\0", "\ufffd")


def _counted(spent: Spent) -> tuple[int, ...]:
    """Returns what a call adds, in the order of the columns. An answer from the cache is not a call to a vendor."""
    usage = spent.usage
    is_call = not usage.cached_answer_count
    return (
        is_call,
        is_call and spent.failure is not None,
        is_call and not usage.HasField("cost"),
        usage.estimated,
        usage.cached_answer_count,
        usage.cost.amount_micros,
        *[getattr(usage, name) for name in _TOKENS],
    )


def _query(columns: Sequence[str]) -> sql.Composed:
    """Returns the query for a page: the newest day first, and within a day by the request's dimensions."""
    apart = [sql.Identifier(column) for column in columns]
    return sql.SQL("""
        SELECT {by}, {sums} FROM provider.usage
        WHERE tenant_id = %(tenant_id)s AND day BETWEEN %(start_date)s AND %(end_date)s
          AND %(session_id)s IN ('', session_id) AND %(personality_id)s IN ('', personality_id)
          AND (day < %(after_day)s OR day = %(after_day)s AND ARRAY[{apart}]::text[] > %(after)s::text[])
        GROUP BY {by} ORDER BY {order} LIMIT %(limit)s
    """).format(
        by=sql.SQL(", ").join([sql.SQL("day"), *apart]),
        sums=sql.SQL(", ").join(sql.SQL("sum({})::bigint").format(sql.Identifier(name)) for name in _COUNTS),
        apart=sql.SQL(", ").join(apart),
        order=sql.SQL(", ").join([sql.SQL("day DESC"), *apart]),
    )


def _date(field: str, value: date_pb2.Date) -> date:
    try:
        return date(value.year, value.month, value.day)
    except ValueError as error:
        raise invalid(field, f"is not a date: {error}; give year, month and day") from None


def _row(columns: Sequence[str], values: Sequence[Any]) -> pb.UsageRow:
    day, rest = values[0], values[1:]
    counts = dict(zip(_COUNTS, rest[len(columns) :], strict=True))
    row = pb.UsageRow(
        date=date_pb2.Date(year=day.year, month=day.month, day=day.day),
        call_count=counts["calls"],
        failed_call_count=counts["failed_calls"],
        unpriced_call_count=counts["unpriced_calls"],
        estimated_call_count=counts["estimated_calls"],
    )
    for column, text in zip(columns, rest, strict=False):
        setattr(row, column, text)
    row.usage.cached_answer_count = counts["cached_answers"]
    for name in _TOKENS:
        setattr(row.usage, name, counts[name])
    row.usage.estimated = counts["estimated_calls"] > 0
    if counts["calls"] > counts["unpriced_calls"]:
        row.usage.cost.CopyFrom(content_pb2.Money(amount_micros=counts["cost_micros"], currency_code=CURRENCY_CODE))
    return row
