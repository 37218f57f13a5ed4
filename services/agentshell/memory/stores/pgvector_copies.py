"""The statements that copy records out, restore them and count them."""

# ruff: noqa: S608 - statements are built from literals alone: their type is LiteralString

from __future__ import annotations

from typing import LiteralString

from agentshell.memory.stores import pgvector_rows as rows

_SIZE = "octet_length(text) + coalesce(octet_length(metadata::text), 0)"
_AFTER = "(namespace, record_id) > (%(after_namespace)s, %(after_id)s)"
_PAGE = "ORDER BY namespace, record_id LIMIT %(limit)s"


def _copy(found: LiteralString) -> LiteralString:
    """Returns the query for the namespace and READ_COLUMNS of the records found, as many as fit."""
    return f"""
    SELECT namespace, {rows.READ_COLUMNS} FROM (
        SELECT *, row_number() OVER by_name AS number, sum({_SIZE}) OVER by_name AS total_bytes
        FROM ({found}) found WINDOW by_name AS (ORDER BY namespace, record_id)
    ) sized
    WHERE number = 1 OR total_bytes <= %(limit_bytes)s
    ORDER BY namespace, record_id"""


COPY_ALL = _copy(f"""
    SELECT namespace, {rows.READ_COLUMNS} FROM memory.records
    WHERE tenant_id = %(tenant)s AND {_AFTER} AND {rows.ALIVE} {_PAGE}""")
# The records of whole namespaces are found by name, the others by the user whom they name.
COPY_SOME = _copy(f"""
    SELECT * FROM (
        (SELECT namespace, {rows.READ_COLUMNS} FROM unnest(%(namespaces)s::text[]) AS asked (name) CROSS JOIN LATERAL (
            SELECT namespace, {rows.READ_COLUMNS} FROM memory.records
            WHERE tenant_id = %(tenant)s AND namespace = name AND {rows.ALIVE}
                AND record_id > CASE name COLLATE "C" WHEN %(after_namespace)s THEN %(after_id)s ELSE '' END
            ORDER BY record_id LIMIT %(limit)s
        ) of_place WHERE name COLLATE "C" >= %(after_namespace)s {_PAGE})
        UNION ALL
        (SELECT namespace, {rows.READ_COLUMNS} FROM memory.records
        WHERE tenant_id = %(tenant)s AND user_id = %(user)s AND user_id <> '' AND {_AFTER} AND {rows.ALIVE}
            AND namespace <> ALL (%(namespaces)s::text[]) {_PAGE})
    ) either {_PAGE}""")

RESTORE = f"""
    INSERT INTO memory.records AS record ({rows.WRITE_COLUMNS}, create_time, update_time, version)
    VALUES ({rows.PLACEHOLDERS}, %s, %s, %s)
    ON CONFLICT (place, record_id) DO UPDATE SET {rows.REPLACE},
        create_time = excluded.create_time, update_time = excluded.update_time, version = excluded.version
    WHERE record.version < excluded.version"""

# Steps from one name to the next, so that finding a namespace of a million records costs one index lookup.
STATS = f"""
    WITH RECURSIVE names (name) AS (
        SELECT min(namespace) FROM memory.records
        WHERE tenant_id = %(tenant)s AND namespace > %(after)s AND {rows.ALIVE}
            AND (%(namespace)s = '' OR namespace = %(namespace)s)
        UNION ALL
        SELECT (
            SELECT min(namespace) FROM memory.records
            WHERE tenant_id = %(tenant)s AND namespace > name AND {rows.ALIVE}
        )
        FROM names WHERE name IS NOT NULL AND %(namespace)s = ''
    ), listed AS (
        SELECT name FROM names WHERE name IS NOT NULL LIMIT %(limit)s
    )
    SELECT name, kind, records, text_bytes, next_embedded FROM listed CROSS JOIN LATERAL (
        SELECT kind, count(*) AS records, sum(octet_length(text))::bigint AS text_bytes,
            count(CASE slot WHEN 1 THEN embedding_2 ELSE embedding END)
                FILTER (WHERE next_embedder IS NOT NULL) AS next_embedded
        FROM memory.records LEFT JOIN memory.namespaces USING (place)
        WHERE records.tenant_id = %(tenant)s AND records.namespace = name AND {rows.ALIVE} GROUP BY kind
    ) counted
    ORDER BY name COLLATE "C", kind"""
