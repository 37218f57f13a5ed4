"""Search among 50,000 vectors, by how many records pass a filter, beside raw SQL, sqlite-vec and mem0's store.

`AGENTSHELL_BENCH_VECTORS=1000000` makes it a million. Ours is asked over gRPC, in a process of its own. The others, and
our own SQL without the service, are asked in this process, and mem0 in its own, run by the Python that
AGENTSHELL_BENCH_MEM0 names.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import quote

import grpc.aio
import numpy as np
import psycopg
from google.protobuf.struct_pb2 import Struct, Value
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.pq import Format
from psycopg.types.json import Jsonb

from agentshell.memory import recall
from agentshell.memory.stores import pgvector_search
from agentshell.memory.stores.store import Place, Probe, Query
from agentshell.mesh import call
from benchmarks import vectors
from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal, median, percentile
from benchmarks.peers.memory_service import NAMESPACE, SPACE, TENANT
from benchmarks.peers.serving import READY
from benchmarks.vectors import NEAREST, SHARES, Synthetic
from kfm.memory.v1 import memory_service_pb2 as pb
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub

if TYPE_CHECKING:
    from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceAsyncStub

_COUNT = 50_000
_QUERIES = 300
_WARMUP = 20
_CALL_SECONDS = 60.0
_FILL_SECONDS = 3_600.0
_INGESTED_CHUNKS = 2_000
_CHUNK = "# Part {0}\n\n" + "Words of a chunk as they come. " * 30 + "\n\n"
_MEM0 = Path(__file__).parent / "peers" / "mem0_store.py"
_RAW = "raw SQL"
_OWN = "our SQL"
# For each connection that builds an index: Postgres' default of 64 MB holds the graph of 50,000 vectors while it is
# built, and each vector beyond that takes several times as long.
_MEMORY = f"&options={quote('-c maintenance_work_mem=2GB')}"


class _Found(NamedTuple):
    """What a search took, and the numbers of the records that it found."""

    seconds: float
    numbers: Sequence[int]


class _Reading(NamedTuple):
    """Milliseconds, and the share of the nearest that was found."""

    p50: float
    p95: float
    recall: float


class _Service(NamedTuple):
    address: str
    key: str
    copy_seconds: float
    index_seconds: float


async def measure(bench: Bench) -> list[Figure]:
    """Fills all of them with the same vectors, then asks each the same queries."""
    count = int(os.environ.get("AGENTSHELL_BENCH_VECTORS", "0")) or (_COUNT // 10 if bench.quick else _COUNT)
    data = vectors.synthetic(count, bench.rounds(_QUERIES))
    file = bench.directory / "vectors.npz"
    np.savez(file, vectors=data.vectors, queries=data.queries)
    figures: list[Figure] = []
    readings: dict[str, dict[int, _Reading]] = {}
    url = await bench.database("memory") + _MEMORY
    async with _running(url, file, bench.directory) as service:
        raw_url = await bench.database("raw_vectors") + _MEMORY
        raw_seconds = await asyncio.to_thread(_fill_raw, raw_url, data)
        readings["ours"] = await _ours(service, data)
        readings[_OWN] = await asyncio.to_thread(_own, url, data)
        readings[_RAW] = await asyncio.to_thread(_raw, raw_url, data)
        name = f"index of {count} vectors"
        figures.append(Figure(name, "s", service.index_seconds, _RAW, raw_seconds, settings="HNSW, m 16, 64, halfvec"))
        copied = count / service.copy_seconds
        figures.append(Figure("records in by COPY, no index of vectors yet", "1/s", copied))
        figures.append(await _ingestion(service))
    with suppress(ModuleNotFoundError):
        readings["sqlite-vec"] = await asyncio.to_thread(_sqlite, data)
    if "sqlite-vec" not in readings:
        bench.skip("sqlite-vec", "pip install apsw sqlite-vec")
    if python := os.environ.get("AGENTSHELL_BENCH_MEM0"):
        readings["mem0"] = await _mem0(python, await bench.database("mem0") + _MEMORY, file, data)
    else:
        bench.skip("mem0", "AGENTSHELL_BENCH_MEM0 names no Python that has mem0ai and psycopg")
    return figures + _compared(readings, count)


def _compared(readings: Mapping[str, Mapping[int, _Reading]], count: int) -> list[Figure]:
    figures: list[Figure] = []
    ours = readings["ours"]
    for share in SHARES:
        where = f"{count} x {vectors.DIMENSION}, {100 / share:g} %"
        least = Goal("ours", ">=", 0.95)
        for name in [name for name in readings if name != "ours"]:
            peer, is_raw = readings[name][share], name == _RAW
            goal = Goal("ratio", "<=", 1.3) if is_raw else None
            figures.append(Figure(f"search, {where}, p50", "ms", ours[share].p50, name, peer.p50, goal))
            limit = Goal("ours", "<=", 10.0) if is_raw else None
            figures.append(Figure(f"search, {where}, p95", "ms", ours[share].p95, name, peer.p95, limit))
            found = (ours[share].recall, name, peer.recall, least if is_raw else None)
            figures.append(Figure(f"recall@{NEAREST}, {where}", "", *found))
    return figures


def _read(found: Sequence[_Found], nearest: Sequence[frozenset[int]]) -> _Reading:
    milliseconds = [each.seconds * 1e3 for each in found[_WARMUP:]] or [each.seconds * 1e3 for each in found]
    shares = [len(wanted.intersection(each.numbers)) / len(wanted) for each, wanted in zip(found, nearest, strict=True)]
    return _Reading(median(milliseconds), percentile(milliseconds, 95), sum(shares) / len(shares))


async def _ours(service: _Service, data: Synthetic) -> dict[int, _Reading]:
    metadata = (("authorization", f"Bearer {service.key}"),)
    readings: dict[int, _Reading] = {}
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub: MemoryServiceAsyncStub = MemoryServiceStub(channel)
        for share in SHARES:
            found: list[_Found] = []
            for number in range(len(data.queries)):
                request = pb.SearchRequest(
                    namespaces=[NAMESPACE], query=str(number), limit=NEAREST, mode=pb.SEARCH_MODE_VECTOR
                )
                if share > 1:
                    request.filter.update({f"every_{share}": True})
                began = time.perf_counter()
                response = await stub.Search(request, metadata=metadata, timeout=_CALL_SECONDS)
                seconds = time.perf_counter() - began
                found.append(_Found(seconds, [int(hit.record.record_id) for hit in response.hits]))
            readings[share] = _read(found, data.nearest[share])
    return readings


async def _ingestion(service: _Service) -> Figure:
    metadata = (("authorization", f"Bearer {service.key}"),)
    content = "".join(_CHUNK.format(number) for number in range(_INGESTED_CHUNKS)).encode()
    parts = [
        pb.IngestRequest(start=pb.IngestStart(namespace="knowledge/ingested")),
        pb.IngestRequest(document=pb.IngestDocument(source_uri="a.md", media_type="text/markdown")),
        *(pb.IngestRequest(content=content[at : at + 1_000_000]) for at in range(0, len(content), 1_000_000)),
    ]
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub: MemoryServiceAsyncStub = MemoryServiceStub(channel)
        began = time.perf_counter()
        response = await stub.Ingest(iter(parts), metadata=metadata, timeout=_CALL_SECONDS)
        rate = response.written_chunk_count / (time.perf_counter() - began)
    settings = "one document of chunks of 1 KB, embedded at no cost; all indexes are there"
    return Figure("Ingest", "chunks/s", rate, goal=Goal("ours", ">=", 500), settings=settings)


@asynccontextmanager
async def _running(url: str, file: Path, directory: Path) -> AsyncGenerator[_Service]:
    command = (sys.executable, "-m", "benchmarks.peers.memory_service", url, str(file), str(directory))
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        async with asyncio.timeout(_FILL_SECONDS):
            ready, *words = (await process.stdout.readline()).decode().split()
        if ready != READY:
            raise RuntimeError(f"the memory service said {ready!r} where it should have said {READY!r}")
        yield _Service(words[0], words[1], float(words[2]), float(words[3]))
    finally:
        await process.communicate(b"")  # It ends with its stdin.


def _connected(url: str) -> psycopg.Connection:
    connection = psycopg.connect(url, autocommit=True)
    register_vector(connection)
    return connection


def _fill_raw(url: str, data: Synthetic) -> float:
    """Returns how many seconds the vectors' index took."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    with _connected(url) as connection:
        columns = f"id int PRIMARY KEY, body text, metadata jsonb, embedding halfvec({vectors.DIMENSION})"
        connection.execute(f"CREATE TABLE items ({columns})".encode())
        with connection.cursor().copy("COPY items FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text", "jsonb", "halfvec"])
            for number, vector in enumerate(data.vectors):
                row = (number, vectors.text(number), Jsonb(vectors.metadata(number)), HalfVector(vector))
                copy.write_row(row)
        connection.execute("CREATE INDEX ON items USING gin (metadata jsonb_path_ops)")
        began = time.perf_counter()
        connection.execute("CREATE INDEX ON items USING hnsw (embedding halfvec_cosine_ops)")
        seconds = time.perf_counter() - began
        connection.execute("VACUUM ANALYZE items")
        return seconds


def _raw(url: str, data: Synthetic) -> dict[int, _Reading]:
    """Searches as someone who knows pgvector would: iterative scans, a larger `ef_search`, an index for the filter."""
    with _connected(url) as connection:
        connection.execute("SET hnsw.iterative_scan = relaxed_order")
        connection.execute("SET hnsw.ef_search = 100")
        connection.execute("SET plan_cache_mode = force_custom_plan")

        def search(share: int, number: int) -> Sequence[int]:
            where = "WHERE metadata @> %(filter)s" if share > 1 else ""
            select = "SELECT id, body, metadata, embedding <=> %(query)s AS distance FROM items"
            parameters = {"query": HalfVector(data.queries[number]), "filter": Jsonb({f"every_{share}": True})}
            statement = f"{select} {where} ORDER BY distance LIMIT {NEAREST}".encode()
            rows = connection.execute(statement, parameters, binary=True)
            return [row[0] for row in rows.fetchall()]

        return _asked(search, data)


def _own(url: str, data: Synthetic) -> dict[int, _Reading]:
    """Runs the service's own statement, with the same answer behind the same walls: only the SQL, without the rest."""
    home, shared = (Place(tenant, NAMESPACE) for tenant in (TENANT, call.SHARED_TENANT))
    expected: dict[int, dict[str, Any]] = {}  # What the service remembers.
    with psycopg.connect(url, autocommit=True) as connection, call.scope(call.Principal(TENANT, "bench"), None):
        connection.pgconn.prepare(b"search", pgvector_search.STATEMENT.encode())
        for share in SHARES:
            where = Jsonb({f"every_{share}": True}) if share > 1 else None
            statement = "SELECT passed, way FROM memory.expected(%s, %s, '{}')"
            [(passed, way)] = connection.execute(statement, [[home.key], where]).fetchall()
            expected[share] = {"expected": passed, "way": way}

        def search(share: int, number: int) -> Sequence[int]:
            query = Query(
                places=[home, shared],
                text=None,
                probes=[Probe([home], SPACE, data.queries[number])],
                weights=recall.weights(pb.SEARCH_MODE_VECTOR),
                containing=Struct(fields={f"every_{share}": Value(bool_value=True)}) if share > 1 else None,
                limit=NEAREST,
                bare_places=[shared],
            )
            written = pgvector_search.written(pgvector_search.by_one_probe(query) | expected[share])
            parameters = cast("list[bytes]", written)  # Or None, which the cast leaves out.
            formats = [Format.BINARY] * len(parameters)
            result = connection.pgconn.exec_prepared(b"search", parameters, formats, Format.BINARY)
            rows = [
                [result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)
            ]
            record_id = [result.fname(column) for column in range(result.nfields)].index(b"record_id")
            return [int(row[record_id] or b"") for row in rows]

        return _asked(search, data)


def _sqlite(data: Synthetic) -> dict[int, _Reading]:
    """Compares every vector that passes, as there is no vector index. Raises ModuleNotFoundError."""
    apsw: Any = importlib.import_module("apsw")  # Only the bench extra has both.
    sqlite_vec: Any = importlib.import_module("sqlite_vec")
    database = apsw.Connection(":memory:")
    database.enable_load_extension(True)
    database.load_extension(sqlite_vec.loadable_path())
    columns = ", ".join(f"every_{share} boolean" for share in SHARES)
    names = ", ".join(f"every_{share}" for share in SHARES)
    database.execute(
        f"CREATE VIRTUAL TABLE items USING vec0(embedding float[{vectors.DIMENSION}] distance_metric=cosine, {columns})"
    )
    marks = ", ".join("?" * (len(SHARES) + 2))
    with database:
        database.executemany(
            f"INSERT INTO items (rowid, embedding, {names}) VALUES ({marks})",  # noqa: S608 - literals
            (
                (number, vector.astype(np.float32).tobytes(), *(number % share == 0 for share in SHARES))
                for number, vector in enumerate(data.vectors)
            ),
        )

    def search(share: int, number: int) -> Sequence[int]:
        query = data.queries[number].astype(np.float32).tobytes()
        statement = f"SELECT rowid FROM items WHERE embedding MATCH ? AND k = ? AND every_{share} = true"  # noqa: S608 - a number
        return [row[0] for row in database.execute(statement, (query, NEAREST))]

    return _asked(search, data)


def _asked(search: Callable[[int, int], Sequence[int]], data: Synthetic) -> dict[int, _Reading]:
    readings: dict[int, _Reading] = {}
    for share in SHARES:
        found: list[_Found] = []
        for number in range(len(data.queries)):
            began = time.perf_counter()
            numbers = search(share, number)
            found.append(_Found(time.perf_counter() - began, numbers))
        readings[share] = _read(found, data.nearest[share])
    return readings


async def _mem0(python: str, url: str, file: Path, data: Synthetic) -> dict[int, _Reading]:
    """Asks mem0's store as shipped, with its HNSW index, over the same rows."""
    command = (python, str(_MEM0), url, str(file), json.dumps(SHARES), str(NEAREST))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), _FILL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{_MEM0.name} ended with status {process.returncode}; it says why above")
    answers: dict[str, list[Any]] = json.loads(output)
    return {share: _read([_Found(*each) for each in answers[str(share)]], data.nearest[share]) for share in SHARES}
