"""Caches repeated reads: the cache port, one file per cache, and how reads go through it."""
