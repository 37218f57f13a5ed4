"""Ports for servers that are to be found at the same place again, or are told of one another before they start."""

from __future__ import annotations

import contextlib
import secrets
import socket

_PORTS = range(20_000, 32_768)  # Below those that Linux gives to whoever asks for any, or connects to somebody.


def free_port() -> int:
    """Returns a port that nobody listens at, and that the system gives to nobody: it is free until it is asked for."""
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port
