"""The schema `memory_vectors`, for a store with a vector index beside Postgres."""
