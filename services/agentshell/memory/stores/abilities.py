"""What each store can do. What one cannot is refused by name, or done otherwise as it says here."""

from __future__ import annotations

from typing import NamedTuple


class Abilities(NamedTuple):
    """A store, declared.

    Whatever the store, records are in Postgres, where a write or a forget is all or nothing, words are looked for, and
    what has expired or is forgotten is found no more.

    `vectors_in`: what looks through vectors. `is_reembedding`: a namespace may change its embedder, in the background;
    otherwise it keeps the one that it began with. `max_dimension`: the most numbers of a vector.
    """

    name: str
    vectors_in: str
    is_reembedding: bool
    max_dimension: int


PGVECTOR = Abilities("pgvector", vectors_in="HNSW in Postgres", is_reembedding=True, max_dimension=4_000)
# Postgres keeps the vectors, too, at most so many numbers of each: an index beside it that is lost is made anew.
QDRANT = Abilities("qdrant", vectors_in="HNSW in Qdrant", is_reembedding=False, max_dimension=16_000)
WEAVIATE = Abilities("weaviate", vectors_in="HNSW in Weaviate", is_reembedding=False, max_dimension=16_000)
