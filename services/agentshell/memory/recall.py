"""How recall weighs what it finds by vector and by words."""

from __future__ import annotations

from typing import NamedTuple

from kfm.memory.v1.memory_service_pb2 import SEARCH_MODE_TEXT, SEARCH_MODE_VECTOR, SearchMode

DEFAULT_LIMIT = 10
# What each way of looking brings into the fusion, at the least.
CANDIDATES = 50
# Of reciprocal rank fusion: a hit's score is the sum of weight / (constant + rank).
RANK_CONSTANT = 60
# Up to here every vector is compared (4 ms); beyond, the index finds the nearest. Through the index, records that are
# few among many are found slowly and not all: the smaller the share, the worse.
EXACT_RECORDS = 4_000


class Weights(NamedTuple):
    """What a hit's rank by vector and its rank by words count."""

    vector: float
    text: float


# Beside the lexical embedder, words count as much as vectors: 103 questions to 1409 manual pages found the right page
# with a mean reciprocal rank of 0.48 by vector, 0.49 by words and 0.51 by both, from 0.3 to 0.6 alike. An embedder that
# knows meaning is better alone than with equal weights: 0.2 to 0.3 for words then.
_HYBRID = Weights(vector=0.5, text=0.5)


def weights(mode: SearchMode.ValueType) -> Weights:
    """Returns the weights of a search mode; 0: do not look that way."""
    match mode:
        case _ if mode == SEARCH_MODE_VECTOR:
            return Weights(1.0, 0.0)
        case _ if mode == SEARCH_MODE_TEXT:
            return Weights(0.0, 1.0)
        case _:
            return _HYBRID
