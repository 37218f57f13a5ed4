"""How recall weighs what it finds: by vector, by words, by age, and by diversity."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agentshell.memory import lexical
from kfm.memory.v1.memory_service_pb2 import SEARCH_MODE_TEXT, SEARCH_MODE_VECTOR, SearchMode

DEFAULT_LIMIT = 10
# The fewest candidates that each kind of search contributes to a fusion, or to a diverse choice.
CANDIDATES = 50
# How many more than the limit the index is asked for when nothing is fused: its order is only nearly right.
SPARE_CANDIDATES = 10
# Of reciprocal rank fusion: a hit's score is the sum of weight / (constant + rank).
RANK_CONSTANT = 60
# Up to this many, all vectors are compared (4 ms); beyond, see EXACT_FACTOR.
EXACT_LEAST = 2_000
# All records that pass a filter are compared if they are at most this share of all records, and at most 100,000;
# `memory.nearest` decides. With 384 dimensions in clusters of 100, and 5 per cent passing, the index found 0.93 of the
# nearest among 50,000, in no less time; among a million, 0.80 in 40 ms, where comparing 50,000 takes 300. From 10 per
# cent on, it finds as much as with no filter. (Among 400,000 vectors more like those of texts, it found 0.99 at 5 per
# cent; which kind real memory resembles is not known.)
EXACT_FACTOR = 0.08


class Weights(NamedTuple):
    """How much a hit's rank by vector and its rank by words count."""

    vector: float
    text: float


# With the lexical embedder, words count nearly as much as vectors: 103 questions about 1409 manual pages found the
# right page with a mean reciprocal rank of 0.48 by vector, 0.49 by words and 0.51 by both, at any weight from 0.3 to
# 0.6. For 68 questions about our own documentation (tests/contract/memory/test_recall.py), the first ten hits answered
# 0.88, 0.90 and, at 0.6, 0.91; the mean reciprocal rank was 0.73, 0.66 and 0.72. An embedder that captures meaning is
# better alone than with equal weights; at 0.7, all-MiniLM-L6-v2 answered 0.94 of the 68 by vector, 0.90 by words and
# 0.99 by both, with a mean reciprocal rank of 0.74, 0.66 and 0.79.
_LEXICAL = Weights(vector=0.6, text=0.4)
_MEANING = Weights(vector=0.7, text=0.3)


def weights(mode: SearchMode.ValueType, embedders: Collection[str] = (lexical.NAME,)) -> Weights:
    """Returns the weights of a search mode for vectors of these embedders; 0 means not to search that way."""
    match mode:
        case _ if mode == SEARCH_MODE_VECTOR:
            return Weights(1.0, 0.0)
        case _ if mode == SEARCH_MODE_TEXT:
            return Weights(0.0, 1.0)
        case _:
            return _LEXICAL if set(embedders) <= {lexical.NAME} else _MEANING


def effort(embedder: str, wanted: int) -> int:
    """Returns how many candidates the index keeps while it looks for the nearest (`hnsw.ef_search`).

    This is for 50,000 vectors; `memory.nearest` scales it with the fourth root of their number.
    Among 17,716 chunks embedded by `lexical`, it found all of the 10 nearest with 200, and 9.5 of them with 100; among
    100,000 sentences embedded by a model, 9.7 with 40 and 9.9 with 100.
    """
    return max(200 if embedder == lexical.NAME else 60, wanted)


def candidates(limit: int, *, is_fused: bool) -> int:
    """Returns how many candidates each kind of search must find, so that the best `limit` in the end are among them."""
    return max(CANDIDATES, limit) if is_fused else limit + SPARE_CANDIDATES


def diversified(
    scores: Sequence[float], vectors: Sequence[NDArray[np.floating] | None], diversity: float, limit: int
) -> list[int]:
    """Returns which candidates to take, best first, by maximal marginal relevance.

    Each next one maximises `(1 - diversity) * score - diversity * likeness`, with its score as a share of the best
    score, and its likeness to the most similar one already taken. The first of two equal ones wins. A candidate without
    a vector, or with one of another length, is similar to none.
    """
    best = max(scores, default=0.0)
    relevance = np.array(scores, dtype=np.float64) / best if best > 0 else np.zeros(len(scores))
    likeness = _likeness(vectors)
    nearest = np.zeros(len(scores))
    taken: list[int] = []
    is_left = np.ones(len(scores), dtype=np.bool_)
    for _ in range(min(limit, len(scores))):
        gain = np.where(is_left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        following = int(np.argmax(gain))
        taken.append(following)
        is_left[following] = False
        nearest = np.maximum(nearest, likeness[following])
    return taken


def _likeness(vectors: Sequence[NDArray[np.floating] | None]) -> NDArray[np.float64]:
    """Returns the cosine of each pair of vectors; 0 if it is negative."""
    likeness = np.zeros((len(vectors), len(vectors)))
    for length in {len(vector) for vector in vectors if vector is not None}:
        alike = [index for index, vector in enumerate(vectors) if vector is not None and len(vector) == length]
        rows = np.array([vectors[index] for index in alike], dtype=np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        likeness[np.ix_(alike, alike)] = np.maximum(rows @ rows.T, 0)
    return likeness
