"""What a worker can run: one file a kind of step."""
