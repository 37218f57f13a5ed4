"""What is read again and again: the cache port, one file a cache, and how reads go through it."""
