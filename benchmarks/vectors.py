"""Synthetic vectors in clusters, what metadata their records have, and which of them are nearest to which query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DIMENSION = 384
NEAREST = 10
# A record passes the filter `every_N` where its number is a multiple of N: 100, 50, 5, 1 and 0.1 per cent do.
SHARES = (1, 2, 20, 100, 1000)

_CLUSTER_SIZE = 100
_SPREAD = 0.8


class Synthetic(NamedTuple):
    """Vectors of length 1, queries of the same kind, and for each share of records each query's nearest."""

    vectors: NDArray[np.float16]
    queries: NDArray[np.float16]
    nearest: Mapping[int, Sequence[frozenset[int]]]


def synthetic(count: int, queries: int) -> Synthetic:
    """Makes the same ones each time."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(max(1, count // _CLUSTER_SIZE), DIMENSION)).astype(np.float32)
    vectors, asked = _around(random, centres, count), _around(random, centres, queries)
    nearest: dict[int, list[frozenset[int]]] = {share: [] for share in SHARES}
    for query in asked:
        likeness = vectors.astype(np.float32) @ query.astype(np.float32) if count <= 100_000 else vectors @ query
        for share in SHARES:
            best = np.argsort(-likeness[::share])[:NEAREST] * share
            nearest[share].append(frozenset(best.tolist()))
    return Synthetic(vectors, asked, nearest)


def metadata(number: int) -> dict[str, Any]:
    """Returns a record's metadata."""
    return {f"every_{share}": number % share == 0 for share in SHARES} | {"number": number}


def text(number: int) -> str:
    """Returns a record's text, as long as a chunk's."""
    return f"Record {number} of many. " * 20


def _around(random: np.random.Generator, centres: NDArray[np.float32], count: int) -> NDArray[np.float16]:
    made = centres[random.integers(0, len(centres), count)]
    made += _SPREAD * random.normal(size=made.shape).astype(np.float32)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)
