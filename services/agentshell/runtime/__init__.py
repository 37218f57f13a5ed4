"""The engine: managers own partitions and decide; workers run steps."""
