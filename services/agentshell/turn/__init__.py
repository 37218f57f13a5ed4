"""What a turn is, without any I/O: how events change it, what to do next, and what its readers see.

The gateway and the runtime share it, so that a turn means the same to both. It awaits nothing and makes no calls.
"""
