"""Search in Postgres: one statement, which looks by vector and by words, fuses both, and reads what it has found.

The functions that it calls, and how they choose between comparing all vectors and asking the index, are in
migrations/0002_search.sql. Records are read behind the wall (wall.py).
"""

# ruff: noqa: S608 - statements are put together from the literals of this file alone

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg.types import TypeInfo

from agentshell.db.database import Database
from agentshell.memory import recall
from agentshell.memory.stores import pgvector_rows as rows
from agentshell.memory.stores import wall
from agentshell.memory.stores.store import Found, Probe, Query, Space, SpaceChanged
from agentshell.mesh import call
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import RECORD_KIND_CHUNK, Hit

# Of an index of halfvec.
MAX_DIMENSION = 4_000

_SPACE_CHANGED = "KFM01"

_NEAREST = """SELECT * FROM memory.nearest(%(places_{0})s, %(vector_{0})s, %(embedder_{0})s, %(slot_{0})s,
        %(filter)s::jsonb, %(kinds)s::smallint[], %(wanted)s, %(exact_least)s, %(exact_factor)s, %(effort_{0})s)"""
_FOUND = """SELECT %(plan_{0})s::integer AS plan, %(passed_{0})s::bigint AS passed, %(places_{0})s::text[] AS places,
        %(record_ids_{0})s::text[] AS record_ids, %(distances_{0})s::float8[] AS distances"""
_NOT_LOOKED = (
    "SELECT 0 AS plan, 0::bigint AS passed, NULL::text[] places, NULL::text[] record_ids, NULL::float8[] distances"
)
# The first row is there even where nothing is found, and says how it was looked.
_SEARCH = f"""
    WITH looked AS MATERIALIZED ({{looked}}
    ), by_vector AS (
        SELECT place, record_id, 1 - distance AS vector_score, rank
        FROM looked CROSS JOIN LATERAL unnest(looked.places, looked.record_ids, looked.distances)
            WITH ORDINALITY AS found (place, record_id, distance, rank)
    ), by_words AS (
        SELECT place, record_id, text_score, rank
        FROM memory.worded(%(places)s, %(text)s, %(filter)s::jsonb, %(kinds)s::smallint[], %(wanted)s) AS worded
            CROSS JOIN LATERAL unnest(worded.places, worded.record_ids, worded.scores)
            WITH ORDINALITY AS found (place, record_id, text_score, rank)
    ), fused AS MATERIALIZED (
        SELECT place, record_id, vector_score, text_score,
            coalesce(%(vector_weight)s::float8 / (%(rank_constant)s + by_vector.rank), 0)
                + coalesce(%(text_weight)s::float8 / (%(rank_constant)s + by_words.rank), 0) AS score
        FROM by_vector FULL JOIN by_words USING (place, record_id)
        WHERE %(min_score)s::float8 IS NULL
            OR CASE WHEN %(is_by_vector)s THEN vector_score ELSE text_score END >= %(min_score)s::float8
        ORDER BY score DESC, record_id LIMIT %(fused)s
    ), hits AS (
        SELECT place, score * coalesce(recency_score, 1) AS score, vector_score, text_score, recency_score,
            CASE WHEN NOT %(with_vectors)s THEN NULL WHEN place = ANY (%(places_of_second)s::text[]) THEN embedding_2
                ELSE embedding END AS vector,
            {rows.READ_COLUMNS}
        FROM fused JOIN memory.readable(%(tenant)s, (SELECT array_agg(place) FROM fused),
            (SELECT array_agg(record_id) FROM fused)) AS records USING (place, record_id)
        CROSS JOIN LATERAL (
            SELECT CASE WHEN %(half_life)s::float8 IS NOT NULL THEN
                exp(-least(ln(2) * greatest(extract(epoch FROM now() - update_time)::float8, 0)
                    / %(half_life)s::float8, 600))
            END AS recency_score
        ) AS aged
        ORDER BY score DESC, record_id LIMIT %(kept)s
    )
    SELECT (SELECT max(plan) FROM looked), (SELECT sum(passed)::bigint FROM looked), hits.*
    FROM (VALUES (true)) AS always LEFT JOIN hits ON true ORDER BY score DESC, record_id"""

# The chunks around chunks: each with the number of the hit that it is near.
_NEIGHBOURS = f"""
    SELECT number, {rows.READ_COLUMNS} FROM memory.records
    JOIN unnest(%(places)s::text[], %(uris)s::text[], %(indexes)s::integer[])
        WITH ORDINALITY AS hit (place, uri, chunk_index, number)
        ON records.place = hit.place AND hashtextextended(source_uri, 0) = hashtextextended(uri, 0) AND source_uri = uri
    WHERE source_chunk_index BETWEEN chunk_index - %(reach)s AND chunk_index + %(reach)s
        AND source_chunk_index <> chunk_index AND kind = %(kind)s AND {rows.ALIVE}
    ORDER BY number, source_chunk_index, record_id"""


class Nearest(NamedTuple):
    """What a probe has found, nearest first, as `memory.nearest` says it: a SearchPlan, and the keys of places."""

    plan: int
    passed: int
    places: Sequence[str]
    record_ids: Sequence[str]
    distances: Sequence[float]


# Finds so many records by a probe, for a query; None: Postgres is to look.
Look: TypeAlias = Callable[[Query, Probe, int], Awaitable[Nearest | None]]


class _Row(NamedTuple):
    """A hit, where it is, and its vector if that was asked for."""

    place: str
    hit: Hit
    vector: NDArray[np.floating] | None


class PgvectorSearch:
    """Searches the records of a database, by vectors that are there, or as `look` finds them."""

    def __init__(self, database: Database, halfvec: TypeInfo, look: Look | None = None) -> None:
        self._database = database
        self._halfvec = halfvec
        self._look = look

    async def prepare(self, space: Space) -> None:
        """Makes the index of a space's vectors, where there is none. Raises CONFIG_INVALID where there can be none.

        It locks nobody out where there are no such vectors yet; otherwise it takes minutes for a million of them.
        """
        if space.dimension > MAX_DIMENSION:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"embedder {space.embedder!r} makes vectors of {space.dimension} numbers, and pgvector's index takes "
                f"{MAX_DIMENSION}: choose another one, or fewer dimensions where its model lets you",
                metadata={"key": "memory.namespaces", "fix": f"at most {MAX_DIMENSION} dimensions"},
            )
        async with self._database.transaction() as connection:
            await connection.execute("SELECT memory.index_vectors(%s, %s)", [space.slot, space.dimension])

    async def search(self, query: Query) -> Found:
        """See `Store.search`."""
        near = [await self._look(query, probe, _wanted(query)) if self._look else None for probe in query.probes]
        parameters = _shared(query)
        for number, (probe, found) in enumerate(zip(query.probes, near, strict=True)):
            values = _to_look(probe) if found is None else found._asdict()
            parameters |= {f"{name}_{number}": value for name, value in values.items()}
        statement = _statement(tuple(found is not None for found in near))
        try:
            async with self._database.connection() as connection:
                rows.adapt(connection, self._halfvec)
                answer = await (await connection.execute(statement, parameters)).fetchall()
        except psycopg.Error as error:
            if error.sqlstate == _SPACE_CHANGED:
                raise SpaceChanged from error
            raise
        plan, passed, *_ = answer[0]
        hits = [_row(*columns) for _, _, *columns in answer if columns[0] is not None]
        if query.diversity:
            chosen = recall.diversified(
                [row.hit.score for row in hits], [row.vector for row in hits], query.diversity, query.limit
            )
            hits = [hits[index] for index in chosen]
        if query.neighbours:
            await self._add_neighbours(hits, query.neighbours)
        return Found([row.hit for row in hits], plan, passed)

    async def _add_neighbours(self, hits: Sequence[_Row], reach: int) -> None:
        chunks = [row for row in hits if row.hit.record.kind == RECORD_KIND_CHUNK and row.hit.record.source.uri]
        if not chunks:
            return
        parameters = {
            "places": [row.place for row in chunks],
            "uris": [row.hit.record.source.uri for row in chunks],
            "indexes": [row.hit.record.source.chunk_index for row in chunks],
            "reach": reach,
            "kind": RECORD_KIND_CHUNK,
        }
        async with wall.reading(self._database) as connection:
            cursor = await connection.execute(_NEIGHBOURS, parameters)
            for number, *columns in await cursor.fetchall():
                chunks[number - 1].hit.neighbours.append(rows.record(*columns))


@cache
def _statement(are_found: tuple[bool, ...]) -> bytes:
    """Returns the search by so many probes: by what each has found, or is to find."""
    looks = (_FOUND if is_found else _NEAREST for is_found in are_found)
    looked = " UNION ALL ".join(look.format(number) for number, look in enumerate(looks)) or _NOT_LOOKED
    return _SEARCH.replace("{looked}", looked).encode()


def _wanted(query: Query) -> int:
    is_chosen_later = query.diversity > 0 or query.half_life_seconds is not None
    is_fused = bool(query.weights.vector and query.weights.text) or len(query.probes) > 1
    return recall.candidates(query.limit, is_fused=is_fused or is_chosen_later)


def _shared(query: Query) -> dict[str, Any]:
    """Returns the parameters that are not of a probe."""
    most = 2 * _wanted(query)
    is_chosen_later = query.diversity > 0
    return {
        "tenant": call.tenant(),
        "places": [place.key for place in query.places],
        "text": query.text,
        "filter": rows.json(query.containing),
        "kinds": list(query.kinds),
        "wanted": _wanted(query),
        "exact_least": recall.EXACT_LEAST,
        "exact_factor": recall.EXACT_FACTOR,
        "rank_constant": recall.RANK_CONSTANT,
        "vector_weight": query.weights.vector,
        "text_weight": query.weights.text,
        "min_score": query.min_score,
        "is_by_vector": query.weights.vector > 0,
        "half_life": query.half_life_seconds,
        # Age and likeness are of records: all that may come to the top are read.
        "fused": most if is_chosen_later or query.half_life_seconds is not None else query.limit,
        "kept": most if is_chosen_later else query.limit,
        "with_vectors": is_chosen_later,
        "places_of_second": [place.key for probe in query.probes if probe.space.slot != 1 for place in probe.places],
    }


def _to_look(probe: Probe) -> dict[str, Any]:
    return {
        "places": [place.key for place in probe.places],
        "vector": rows.vector(probe.embedding),
        "embedder": probe.space.embedder,
        "slot": probe.space.slot,
        "effort": recall.effort(probe.space.embedder),
    }


def _row(
    place: str,
    score: float,
    vector_score: float | None,
    text_score: float | None,
    recency_score: float | None,
    vector: HalfVector | None,
    *columns: Any,
) -> _Row:
    hit = Hit(
        record=rows.record(*columns),
        namespace=place.partition(" ")[0],
        score=score,
        vector_score=vector_score,
        text_score=text_score,
        recency_score=recency_score,
    )
    return _Row(place, hit, None if vector is None else vector.to_numpy())
