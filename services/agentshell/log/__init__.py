"""The durable log: a port and its drivers. It knows bytes, not events."""
