"""Postgres: the pool, the migrations, and the bundled server. Knows no service."""
