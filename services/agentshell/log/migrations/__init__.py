"""The log's schema in Postgres, as numbered migrations."""
