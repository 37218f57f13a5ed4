"""The durable log: a port and its drivers. Knows bytes, not events."""
