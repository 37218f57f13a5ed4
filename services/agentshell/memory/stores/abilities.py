"""What each store can do. What it cannot do is refused by name, or done differently as stated here."""

from __future__ import annotations

from typing import NamedTuple


class Abilities(NamedTuple):
    """A store's declared abilities.

    Whatever the store, records are in Postgres: there a write or a forget is all or nothing, words are searched, and
    nothing expired or forgotten is found any more.

    `vectors_in`: what searches the vectors. `is_reembedding`: a namespace may change its embedder, in the background;
    otherwise it keeps its first one. `max_dimension`: the most numbers a vector may have.
    """

    name: str
    vectors_in: str
    is_reembedding: bool
    max_dimension: int


PGVECTOR = Abilities("pgvector", vectors_in="HNSW in Postgres", is_reembedding=True, max_dimension=4_000)
# Postgres keeps these vectors, too, which limits their dimension: a lost index is rebuilt from them.
QDRANT = Abilities("qdrant", vectors_in="HNSW in Qdrant", is_reembedding=False, max_dimension=16_000)
WEAVIATE = Abilities("weaviate", vectors_in="HNSW in Weaviate", is_reembedding=False, max_dimension=16_000)
