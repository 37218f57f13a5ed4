"""What a tool must not be able to do in the interpreter: tried once, before the first tool runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable


def escapes() -> list[str]:
    """Returns what can be done nevertheless; empty: the interpreter holds."""
    return [name for name, attempt in _ATTEMPTS.items() if _succeeds(attempt)]


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        return attempt() != {}
    except Exception:
        return False


_ATTEMPTS: dict[str, Callable[[], object]] = {
    "read a file": lambda: open("/etc/passwd").read(),  # noqa: PTH123, SIM115 - it must fail
    "list a directory": lambda: os.listdir("/"),  # noqa: PTH208 - it must fail
    "write a file": lambda: open("/tmp/canary", "w").close(),  # noqa: PTH123, S108 - it must fail
    "read the environment": lambda: dict(os.environ),
    "reach a host": lambda: socket.create_connection(("127.0.0.1", 1)),
    "look a host up": lambda: socket.getaddrinfo("localhost", 80),
}
