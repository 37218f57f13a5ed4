"""The memory's schema in Postgres, as numbered migrations."""
