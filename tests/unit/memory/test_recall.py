"""How recall chooses among candidates, and how it weighs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agentshell.memory import recall
from agentshell.memory.recall import Weights
from kfm.memory.v1.memory_service_pb2 import SEARCH_MODE_HYBRID, SEARCH_MODE_TEXT, SEARCH_MODE_VECTOR, SearchMode

Vector = NDArray[np.float16]
FINITE = st.floats(-1, 1, width=16)
VECTORS = st.none() | st.lists(FINITE, min_size=2, max_size=4).map(lambda numbers: np.array(numbers, dtype=np.float16))
CANDIDATES = st.lists(st.tuples(st.floats(0, 1), VECTORS), max_size=12)


@given(CANDIDATES, st.floats(0, 1), st.integers(1, 15))
@settings(max_examples=100)
def test_the_chosen_are_as_many_as_asked_for_and_each_of_them_once(
    candidates: list[tuple[float, Vector | None]], diversity: float, limit: int
) -> None:
    scores, vectors = [score for score, _ in candidates], [vector for _, vector in candidates]
    chosen = recall.diversified(scores, vectors, diversity, limit)
    assert len(set(chosen)) == len(chosen) == min(limit, len(candidates))
    assert set(chosen) <= set(range(len(candidates)))
    # A smaller limit gives a prefix.
    assert recall.diversified(scores, vectors, diversity, max(1, limit // 2)) == chosen[: max(1, limit // 2)]


@given(CANDIDATES)
@settings(max_examples=50)
def test_without_diversity_the_order_is_by_score(candidates: list[tuple[float, Vector | None]]) -> None:
    scores = [score for score, _ in candidates]
    chosen = recall.diversified(scores, [vector for _, vector in candidates], 0.0, len(candidates))
    assert chosen == sorted(range(len(scores)), key=lambda index: -scores[index])


def test_what_is_like_one_before_it_comes_later() -> None:
    scores = [1.0, 0.99, 0.5, 0.4]
    vectors = [np.array(numbers, dtype=np.float16) for numbers in ([1, 0], [1, 0.01], [0, 1])]
    assert recall.diversified(scores, [*vectors, None], 0.5, 4) == [0, 2, 3, 1]
    assert recall.diversified(scores, [*vectors, None], 1.0, 3) == [0, 2, 3]


@pytest.mark.parametrize(
    ("mode", "embedders", "weights"),
    [
        (SEARCH_MODE_HYBRID, ["lexical"], Weights(0.6, 0.4)),
        (SEARCH_MODE_HYBRID, [], Weights(0.6, 0.4)),
        (SEARCH_MODE_HYBRID, ["openai/text-embedding-3-small"], Weights(0.7, 0.3)),
        (SEARCH_MODE_HYBRID, ["lexical", "local"], Weights(0.7, 0.3)),
        (SEARCH_MODE_VECTOR, ["local"], Weights(1.0, 0.0)),
        (SEARCH_MODE_TEXT, ["local"], Weights(0.0, 1.0)),
    ],
)
def test_words_count_less_beside_an_embedder_that_knows_meaning(
    mode: SearchMode.ValueType, embedders: list[str], weights: Weights
) -> None:
    assert recall.weights(mode, embedders) == weights
