"""Synthetic vectors in clusters, their records' metadata, and which of them are nearest to each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DIMENSION = 384
NEAREST = 10
# A record passes the filter `every_N` if its number is a multiple of N: 100, 50, 5, 1 and 0.1 per cent do.
SHARES = (1, 2, 20, 100, 1000)

_CLUSTER_SIZE = 100
_SPREAD = 0.8
# Vectors are made and compared this many at a time, a multiple of all shares: a million of them take less than 2 GB.
_BLOCK = 50_000


class Synthetic(NamedTuple):
    """Vectors of length 1, queries of the same kind, and, for each share of the records, each query's nearest."""

    vectors: NDArray[np.float16]
    queries: NDArray[np.float16]
    nearest: Mapping[int, Sequence[frozenset[int]]]


def synthetic(count: int, queries: int) -> Synthetic:
    """Makes the vectors and queries, the same ones each time."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(max(1, count // _CLUSTER_SIZE), DIMENSION)).astype(np.float32)
    vectors, asked = _around(random, centres, count), _around(random, centres, queries)
    return Synthetic(vectors, asked, _nearest(vectors, asked))


def metadata(number: int) -> dict[str, Any]:
    """Returns a record's metadata."""
    return {f"every_{share}": number % share == 0 for share in SHARES} | {"number": number}


def text(number: int) -> str:
    """Returns a record's text, as long as a chunk's."""
    return f"Record {number} of many. " * 20


def _around(random: np.random.Generator, centres: NDArray[np.float32], count: int) -> NDArray[np.float16]:
    made = np.empty((count, DIMENSION), dtype=np.float16)
    chosen = random.integers(0, len(centres), count)
    for start in range(0, count, _BLOCK):
        block = centres[chosen[start : start + _BLOCK]]
        block += _SPREAD * random.normal(size=block.shape).astype(np.float32)
        made[start : start + _BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return made


def _nearest(vectors: NDArray[np.float16], asked: NDArray[np.float16]) -> dict[int, list[frozenset[int]]]:
    """Finds each query's nearest by comparing it with all vectors."""
    queries = asked.astype(np.float32)
    best = dict.fromkeys(SHARES, (np.empty((len(asked), 0), np.float32), np.empty((len(asked), 0), np.int64)))
    for start in range(0, len(vectors), _BLOCK):
        end = min(start + _BLOCK, len(vectors))
        likeness: NDArray[np.float32] = queries @ vectors[start:end].astype(np.float32).T
        numbers = np.tile(np.arange(start, end, dtype=np.int64), (len(asked), 1))
        for share, (best_likeness, best_numbers) in best.items():
            together = np.hstack([best_likeness, likeness[:, ::share]])
            candidates = np.hstack([best_numbers, numbers[:, ::share]])
            first = np.argpartition(-together, min(NEAREST, together.shape[1]) - 1)[:, :NEAREST]
            best[share] = np.take_along_axis(together, first, 1), np.take_along_axis(candidates, first, 1)
    return {share: [frozenset(row) for row in numbers.tolist()] for share, (_, numbers) in best.items()}
