"""Search in Postgres: one statement that searches by vector and by words, fuses both, and reads the records found.

The functions it calls are in migrations/0002_search.sql, 0007_plans.sql, 0008_kept_plans.sql and 0010_words.sql;
`nearest` chooses between comparing all vectors and asking the index. Records are read behind the wall (wall.py).
"""

# ruff: noqa: S608 - statements are built from literals alone

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import psycopg
from cachetools import TTLCache
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg.pq.abc import PGresult
from psycopg.types import TypeInfo

from agentshell.db import binary
from agentshell.db.database import Database
from agentshell.memory import recall
from agentshell.memory.stores import generations, wall
from agentshell.memory.stores import pgvector_rows as rows
from agentshell.memory.stores.generations import Generations
from agentshell.memory.stores.store import Found, Probe, Query, Space, SpaceChanged
from agentshell.mesh import call
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import RECORD_KIND_CHUNK, SearchPlan, SearchResponse

# The limit of an index on halfvec.
MAX_DIMENSION = 4_000

# How many searches a process runs side by side, each on a connection of its own.
_CONNECTIONS = 4
# How long a search relies on how many records passed its filters before, and on the index that found them. If that has
# changed much since, it is slower or its recall a little lower, but it still returns as many hits as were asked for.
_PASSED_SECONDS = 10.0
_PASSED_KEPT = 10_000
_UNKNOWN: Mapping[str, Any] = {"expected": None, "way": None}

_SPACE_CHANGED = "KFM01"

# The first row exists even if nothing is found, and says how the search was done.
_SEARCH = f"""
    WITH looked AS MATERIALIZED (
        SELECT near.* FROM memory.nearest(%(probe_places)s, %(vector)s, %(embedder)s, %(slot)s, %(filter)s, %(kinds)s,
            %(wanted)s, %(exact_least)s, %(exact_factor)s, %(effort)s, %(expected)s, %(way)s) AS near
        WHERE %(vector)s IS NOT NULL
    ), by_vector AS (
        SELECT place, record_id, 1 - distance AS vector_score, rank
        FROM looked CROSS JOIN LATERAL unnest(looked.places, looked.record_ids, looked.distances)
            WITH ORDINALITY AS near (place, record_id, distance, rank)
        UNION ALL
        SELECT place, record_id, 1 - distance, rank
        FROM unnest(%(near_places)s, %(near_ids)s, %(near_distances)s, %(near_ranks)s)
            AS near (place, record_id, distance, rank)
    ), by_words AS (
        SELECT place, record_id, text_score, rank
        FROM memory.worded(%(places)s, %(text)s, %(filter)s, %(kinds)s, %(wanted)s) AS worded
            CROSS JOIN LATERAL unnest(worded.places, worded.record_ids, worded.scores)
            WITH ORDINALITY AS found (place, record_id, text_score, rank)
        WHERE %(text)s IS NOT NULL
    ), fused AS MATERIALIZED (
        SELECT place, record_id, vector_score, text_score,
            coalesce(%(vector_weight)s / (%(rank_constant)s + by_vector.rank), 0)
                + coalesce(%(text_weight)s / (%(rank_constant)s + by_words.rank), 0) AS score
        FROM by_vector FULL JOIN by_words USING (place, record_id)
        WHERE %(min_score)s IS NULL
            OR CASE WHEN %(vector_weight)s > 0 THEN vector_score ELSE text_score END >= %(min_score)s
        ORDER BY score DESC, record_id LIMIT %(fused)s
    ), hits AS (
        SELECT place, score * coalesce(recency_score, 1) AS score, vector_score, text_score, recency_score,
            CASE WHEN NOT %(with_vectors)s THEN NULL WHEN place = ANY (%(places_of_second)s) THEN embedding_2
                ELSE embedding END AS vector,
            {rows.READ_COLUMNS}
        FROM fused JOIN memory.readable(%(tenant)s, (SELECT array_agg(place) FROM fused),
            (SELECT array_agg(record_id) FROM fused)) AS records USING (place, record_id)
        CROSS JOIN LATERAL (
            SELECT CASE WHEN %(half_life)s IS NOT NULL THEN
                exp(-least(ln(2) * greatest(extract(epoch FROM now() - update_time)::float8, 0) / %(half_life)s, 600))
            END AS recency_score
        ) AS aged
        ORDER BY score DESC, record_id LIMIT %(kept)s
    )
    SELECT EXISTS (SELECT FROM memory.namespaces WHERE place = ANY (%(bare_places)s)),
        {generations.columns("%(places)s")}, looked.plan, looked.passed, looked.way, hits.*
    FROM (VALUES (true)) AS always LEFT JOIN looked ON true LEFT JOIN hits ON true ORDER BY score DESC, record_id"""

# Its parameters in order, with their types.
_PARAMETERS = {
    "tenant": "text",
    "places": "text[]",
    "bare_places": "text[]",
    "places_of_second": "text[]",
    "text": "text",
    "filter": "jsonb",
    "kinds": "smallint[]",
    "wanted": "integer",
    "probe_places": "text[]",
    "vector": "halfvec",
    "embedder": "text",
    "slot": "integer",
    "effort": "integer",
    "expected": "bigint",
    "way": "integer",
    "exact_least": "integer",
    "exact_factor": "float8",
    "near_places": "text[]",
    "near_ids": "text[]",
    "near_distances": "float8[]",
    "near_ranks": "bigint[]",
    "vector_weight": "float8",
    "text_weight": "float8",
    "rank_constant": "integer",
    "min_score": "float8",
    "half_life": "float8",
    "fused": "integer",
    "kept": "integer",
    "with_vectors": "boolean",
}
_BINARY: Mapping[str, Callable[[Any], bytes]] = {
    "text": str.encode,
    "text[]": binary.texts,
    "jsonb": binary.document,
    "smallint[]": binary.smallints,
    "integer": binary.integer,
    "bigint": binary.bigint,
    "bigint[]": binary.bigints,
    "float8": binary.float8,
    "float8[]": binary.floats,
    "boolean": binary.boolean,
    "halfvec": HalfVector.to_binary,
}
# The statement as prepared.
STATEMENT = _SEARCH % {name: f"${number}::{kind}" for number, (name, kind) in enumerate(_PARAMETERS.items(), 1)}
_WRITERS = [(name, _BINARY[kind]) for name, kind in _PARAMETERS.items()]
# Its columns: whether a place assumed to be bare has vectors, the places' state, how the search was done, the hits.
_IS_CHANGED, _GENERATIONS, _TIME, _PLAN, _PASSED, _WAY, _FIRST_OF_HIT = range(7)
_TRUE = b"\x01"

# What one of several probes finds.
_NEAREST = """
    SELECT * FROM memory.nearest(%(probe_places)s, %(vector)s, %(embedder)s, %(slot)s, %(filter)s::jsonb,
        %(kinds)s::smallint[], %(wanted)s, %(exact_least)s, %(exact_factor)s, %(effort)s, %(expected)s, %(way)s)"""

# The chunks around hits, each with the number of its hit.
_NEIGHBOURS = f"""
    SELECT number, {rows.READ_COLUMNS} FROM memory.records
    JOIN unnest(%(places)s::text[], %(uris)s::text[], %(indexes)s::integer[])
        WITH ORDINALITY AS hit (place, uri, chunk_index, number)
        ON records.place = hit.place AND hashtextextended(source_uri, 0) = hashtextextended(uri, 0) AND source_uri = uri
    WHERE source_chunk_index BETWEEN chunk_index - %(reach)s AND chunk_index + %(reach)s
        AND source_chunk_index <> chunk_index AND kind = %(kind)s AND {rows.ALIVE}
    ORDER BY number, source_chunk_index, record_id"""


class Nearest(NamedTuple):
    """What a probe found, nearest first, as `memory.nearest` returns it; `plan` is a SearchPlan, `places` are keys."""

    plan: int
    passed: int
    places: Sequence[str]
    record_ids: Sequence[str]
    distances: Sequence[float]


# Finds a number of records by a probe, for a query; None leaves the search to Postgres.
Look: TypeAlias = Callable[[Query, Probe, int], Awaitable[Nearest | None]]


class PgvectorSearch:
    """Searches the records of a database, by the vectors in it, or as `look` finds them."""

    def __init__(self, database: Database, halfvec: TypeInfo, look: Look | None = None) -> None:
        self._database = database
        self._halfvec = halfvec
        self._look = look
        self._statement = database.statements(STATEMENT, _CONNECTIONS)
        self._generations = Generations(database)
        self._passed = TTLCache[Hashable, Mapping[str, Any], float](_PASSED_KEPT, _PASSED_SECONDS)

    async def prepare(self, space: Space) -> None:
        """Creates the index of a space's vectors if there is none. Raises CONFIG_INVALID if there cannot be one.

        Writers wait meanwhile: hardly if there are no such vectors yet, but minutes if there are a million.
        """
        if space.dimension > MAX_DIMENSION:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"embedder {space.embedder!r} makes vectors of {space.dimension} numbers, and pgvector's index takes "
                f"{MAX_DIMENSION}: choose another one, or fewer dimensions if its model allows it",
                metadata={"key": "memory.namespaces", "fix": f"at most {MAX_DIMENSION} dimensions"},
            )
        async with self._database.transaction() as connection:
            await connection.execute("SELECT memory.index_vectors(%s, %s)", [space.slot, space.dimension])

    async def search(self, query: Query) -> Found:
        """See `Store.search`."""
        is_one = not self._look and len(query.probes) <= 1  # Then one statement reads everything, even the state.
        before = None if is_one else await self._generations.state([place.key for place in query.places])
        shared = _shared(query)
        near, unlooked = await self._looked(query)
        try:
            near += [await self._nearest(shared | _of_probe(query, probe)) for probe in unlooked[1:]]
            parameters = shared | _near(near) | (_of_probe(query, unlooked[0]) if unlooked else {})
            result = await self._statement.run(written({**parameters, **self._expected(parameters)}))
        except psycopg.Error as error:
            if error.sqlstate == _SPACE_CHANGED:
                raise SpaceChanged from error
            raise
        if result.get_value(0, _IS_CHANGED) == _TRUE:
            raise SpaceChanged
        if unlooked:
            how = (result.get_value(0, column) or b"" for column in (_PLAN, _PASSED, _WAY))
            plan, passed, way = map(binary.number_of, how)
            self._passed[_filters(parameters)] = {"expected": passed, "way": way}
            near.append(Nearest(plan, passed, [], [], []))
        hits = _hits(result)
        if query.diversity:
            chosen = recall.diversified(
                [hit[_SCORE] for hit in hits], [hit[_VECTOR] for hit in hits], query.diversity, query.limit
            )
            hits = [hits[index] for index in chosen]
        response = _response(near, hits)
        if query.neighbour_count:
            await self._add_neighbours([hit[_PLACE] for hit in hits], response, query.neighbour_count)
        state = before or generations.state(result.get_value(0, _GENERATIONS), result.get_value(0, _TIME))
        return Found(response, state)

    async def _looked(self, query: Query) -> tuple[list[Nearest], list[Probe]]:
        """Returns what `look` finds, and the probes that it leaves to Postgres."""
        near: list[Nearest] = []
        unlooked: list[Probe] = []
        for probe in query.probes:
            found = await self._look(query, probe, _wanted(query)) if self._look else None
            if found is None:
                unlooked.append(probe)
            else:
                near.append(found)
        return near, unlooked

    async def _nearest(self, parameters: dict[str, Any]) -> Nearest:
        """Returns what one of several probes finds."""
        async with self._database.connection() as connection:
            rows.adapt(connection, self._halfvec)
            cursor = await connection.execute(_NEAREST, {**parameters, **self._expected(parameters)})
            [(way, plan, passed, *found)] = await cursor.fetchall()
        self._passed[_filters(parameters)] = {"expected": passed, "way": way}
        return Nearest(plan, passed, *(each or [] for each in found))

    def _expected(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._passed.get(_filters(parameters), _UNKNOWN)

    async def _add_neighbours(self, places: Sequence[str], response: SearchResponse, reach: int) -> None:
        hits = zip(places, response.hits, strict=True)
        chunks = [(place, hit) for place, hit in hits if hit.record.kind == RECORD_KIND_CHUNK and hit.record.source.uri]
        if not chunks:
            return
        parameters = {
            "places": [place for place, _ in chunks],
            "uris": [hit.record.source.uri for _, hit in chunks],
            "indexes": [hit.record.source.chunk_index for _, hit in chunks],
            "reach": reach,
            "kind": RECORD_KIND_CHUNK,
        }
        async with wall.reading(self._database) as connection:
            cursor = await connection.execute(_NEIGHBOURS, parameters)
            for number, *columns in await cursor.fetchall():
                _, hit = chunks[int(number) - 1]
                rows.fill(hit.neighbours.add(), *columns)


def _wanted(query: Query) -> int:
    is_chosen_later = query.diversity > 0 or query.half_life_seconds is not None
    is_fused = bool(query.weights.vector and query.weights.text) or len(query.probes) > 1
    return recall.candidates(query.limit, is_fused=is_fused or is_chosen_later)


def _filters(parameters: Mapping[str, Any]) -> Hashable:
    """Returns what determines how many records pass."""
    return (*parameters.get("probe_places", ()), parameters["filter"], *parameters["kinds"])


def _of_probe(query: Query, probe: Probe) -> dict[str, Any]:
    """Returns the parameters that come from a probe."""
    return {
        "probe_places": [place.key for place in probe.places],
        "vector": rows.vector(probe.embedding),
        "embedder": probe.space.embedder,
        "slot": probe.space.slot,
        "effort": recall.effort(probe.space.embedder, _wanted(query)),
    }


def _shared(query: Query) -> dict[str, Any]:
    """Returns the parameters that do not come from a probe."""
    most = 2 * _wanted(query)
    is_chosen_later = query.diversity > 0
    return {
        "tenant": call.tenant(),
        "places": [place.key for place in query.places],
        "bare_places": [place.key for place in query.bare_places],
        "places_of_second": [place.key for probe in query.probes if probe.space.slot != 1 for place in probe.places],
        "text": query.text,
        "filter": rows.json_text(query.containing),
        "kinds": list(query.kinds),
        "wanted": _wanted(query),
        "exact_least": recall.EXACT_LEAST,
        "exact_factor": recall.EXACT_FACTOR,
        "rank_constant": recall.RANK_CONSTANT,
        "vector_weight": query.weights.vector,
        "text_weight": query.weights.text,
        "min_score": query.min_score,
        "half_life": query.half_life_seconds,
        # Age and likeness need the records: all that may come to the top are read.
        "fused": most if is_chosen_later or query.half_life_seconds is not None else query.limit,
        "kept": most if is_chosen_later else query.limit,
        "with_vectors": is_chosen_later,
    }


def _near(found: Sequence[Nearest]) -> dict[str, Any]:
    """Returns the parameters that hold what was found so far."""
    return {
        "near_places": [place for each in found for place in each.places],
        "near_ids": [record_id for each in found for record_id in each.record_ids],
        "near_distances": [distance for each in found for distance in each.distances],
        "near_ranks": [rank for each in found for rank in range(1, len(each.places) + 1)],
    }


def by_one_probe(query: Query) -> dict[str, Any]:
    """Returns the parameters of a query with one probe, without `expected` and `way`."""
    return _shared(query) | _near([]) | _of_probe(query, query.probes[0])


def written(parameters: Mapping[str, Any]) -> list[bytes | None]:
    """Returns the parameters of `STATEMENT` in binary format; missing ones are NULL."""
    values = ((parameters.get(name), write) for name, write in _WRITERS)
    return [None if value is None else write(value) for value, write in values]


def _vector(value: bytes) -> NDArray[np.floating]:
    return HalfVector.from_binary(value).to_numpy()


# What decodes a hit's columns.
_READERS: Sequence[tuple[int, Callable[[bytes], Any]]] = list(
    enumerate((bytes.decode, *(binary.float_of,) * 4, _vector, *rows.READERS), _FIRST_OF_HIT)
)
_PLACE, _SCORE, _VECTOR_SCORE, _TEXT_SCORE, _RECENCY_SCORE, _VECTOR, _FIRST_OF_RECORD = range(7)


def _hits(result: PGresult) -> list[list[Any]]:
    """Returns the columns of each hit."""
    if result.get_value(0, _FIRST_OF_HIT) is None:
        return []  # Its only row just says how the search was done.
    value_of = result.get_value
    return [
        [None if (value := value_of(number, column)) is None else read(value) for column, read in _READERS]
        for number in range(result.ntuples)
    ]


def _response(near: Sequence[Nearest], hits: Sequence[Sequence[Any]]) -> SearchResponse:
    plan = SearchPlan.ValueType(max((found.plan for found in near), default=0))
    response = SearchResponse(plan=plan, candidate_count=sum(found.passed for found in near))
    for hit in hits:
        made = response.hits.add(
            namespace=hit[_PLACE].partition(" ")[0],
            score=hit[_SCORE],
            vector_score=hit[_VECTOR_SCORE],
            text_score=hit[_TEXT_SCORE],
            recency_score=hit[_RECENCY_SCORE],
        )
        rows.fill(made.record, *hit[_FIRST_OF_RECORD:])  # In place: copying a record costs more than making it.
    return response
