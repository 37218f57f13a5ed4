"""The kinds of steps that a worker runs: one module each."""
