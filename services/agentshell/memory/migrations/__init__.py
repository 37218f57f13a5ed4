"""The memory schema in Postgres, as numbered migrations."""
