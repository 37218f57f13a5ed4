"""Ports for servers that must keep their address, or learn one another's before they start."""

from __future__ import annotations

import contextlib
import secrets
import socket

_PORTS = range(20_000, 32_768)  # Below Linux's ephemeral ports.


def free_port() -> int:
    """Returns a port that nobody listens on and that the system never assigns, so it stays free until requested."""
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port
