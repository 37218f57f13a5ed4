"""The statements that list records, one for each order: keyset pages, from an index in that order.

A page's keys are found in front of the wall, because no metadata index can be used behind it; its records are read
behind it. One statement does both, so that they come from one snapshot.
"""

# ruff: noqa: S608 - statements are built from literals alone: their type is LiteralString

from __future__ import annotations

from functools import cache
from typing import Any, LiteralString

from agentshell.memory.stores import pgvector_rows as rows
from agentshell.memory.stores.store import Listing, Position
from agentshell.mesh import call

_SIZE = "octet_length(text) + coalesce(octet_length(metadata::text), 0)"


def statement(listing: Listing, after: Position | None) -> LiteralString:
    """Returns the query for a page: of each record its tenant, whether there are more, and the record."""
    return _statement(listing.key, listing.descending, after is not None)


def parameters(listing: Listing, after: Position | None, limit: int, limit_bytes: int) -> dict[str, Any]:
    """Returns the parameters of `statement`."""
    time, record_id, tenant_id = after or (None, None, None)
    return rows.within(
        listing.places,
        tenant=call.tenant(),
        filter=rows.json(listing.containing),
        kinds=list(listing.kinds) or None,
        after_time=time,
        after_id=record_id,
        after_tenant=tenant_id,
        limit=limit,
        limit_bytes=limit_bytes,
    )


@cache
def _statement(key: LiteralString, descending: bool, is_resumed: bool) -> LiteralString:
    way, beyond = ("DESC", "<") if descending else ("ASC", ">")
    if key == "record_id":
        columns, values = "record_id", "%(after_id)s::text"
        in_place = f"record_id {way}"
    else:
        columns, values = f"{key}, record_id", "%(after_time)s::timestamptz, %(after_id)s::text"
        in_place = f"{key} {way}, record_id {way}"
    order = f"{in_place}, tenant_id {way}"
    resumed = ""
    if is_resumed:  # The index resumes by its own columns; the tenant tells which of two places was last.
        resumed = f"""AND ({columns}) {beyond}= ({values})
                    AND ({columns}, tenant_id) {beyond} ({values}, %(after_tenant)s::text)"""
    return f"""
    WITH keys AS MATERIALIZED (SELECT number, tenant_id, place, record_id, has_more FROM (
        SELECT *, row_number() OVER ordered AS number, lead(record_id) OVER ordered IS NOT NULL AS has_more,
            sum({_SIZE}) OVER ordered AS total_bytes
        FROM (
            SELECT of_place.* FROM unnest(%(places)s::text[]) AS listed (place) CROSS JOIN LATERAL (
                SELECT * FROM memory.records
                WHERE records.place = listed.place {resumed} AND {rows.ALIVE} AND {rows.FITS_FILTER}
                    AND (%(kinds)s::smallint[] IS NULL OR kind = ANY (%(kinds)s::smallint[]))
                ORDER BY {in_place} LIMIT %(limit)s + 1
            ) of_place
            ORDER BY {order} LIMIT %(limit)s + 1
        ) candidates
        WINDOW ordered AS (ORDER BY {order})
    ) sized
    WHERE number = 1 OR (number <= %(limit)s AND total_bytes <= %(limit_bytes)s))
    SELECT keys.tenant_id, has_more, {rows.READ_COLUMNS} FROM keys
    JOIN memory.readable(%(tenant)s, (SELECT array_agg(place) FROM keys), (SELECT array_agg(record_id) FROM keys))
        AS records USING (place, record_id)
    ORDER BY number"""
