"""The schema `memory_vectors`, which a store with an index of vectors beside Postgres has."""
