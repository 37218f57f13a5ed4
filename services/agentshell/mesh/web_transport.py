"""How `Web` connects: only to permitted addresses. Imported only when somebody uses the Web."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any, Final

import httpcore2
import httpx2

# How many addresses of a name are tried, one after another.
_MAX_ADDRESSES: Final = 4
# Idle connections that stay open.
_MAX_IDLE: Final = 20

Choose = Callable[[str, int, Sequence[str]], Sequence[str]]
"""Takes a host, a port and the host's addresses; returns those that may be connected to, or raises if none may."""


class Transport(httpx2.AsyncHTTPTransport):
    """httpx2's own, except in how it connects, for which httpx2 has no option. Bodies fail beyond `max_body_bytes`."""

    def __init__(self, choose: Choose, max_body_bytes: int | None) -> None:
        # The base class's __init__ is not called: all it does is make a pool that connects anywhere.
        tls = httpx2.create_ssl_context(trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls,
            network_backend=_Guard(choose),
            max_connections=None,  # Callers bound their requests; the pool's own ten made all tenants queue.
            max_keepalive_connections=_MAX_IDLE,
        )
        self._max_body_bytes = max_body_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request. Raises httpx2.TransportError, and what `choose` raises."""
        response = await super().handle_async_request(request)
        if self._max_body_bytes is not None:
            response.stream = _Bounded(response.stream, self._max_body_bytes)
        return response


class _Guard(httpcore2.AsyncNetworkBackend):
    """Looks a name up once and connects to what it found: a second look-up could find something else."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._real: Any = httpcore2.AnyIOBackend()  # To the type checker only a placeholder, for lack of anyio.

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failed = httpcore2.ConnectError("the name has no address")
        for address in self._choose(host, port, await _look_up(host, port))[:_MAX_ADDRESSES]:
            try:
                return await self._real.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.ConnectError as error:
                failed = error
        raise failed


class _Bounded(httpx2.AsyncByteStream):
    """A body that fails once it is too large."""

    def __init__(self, stream: Any, left_bytes: int) -> None:
        self._stream = stream
        self._left_bytes = left_bytes

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async for chunk in self._stream:
            self._left_bytes -= len(chunk)
            if self._left_bytes < 0:
                raise httpx2.ReadError("the body is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _look_up(host: str, port: int) -> list[str]:
    """Returns the addresses of a host; none if its name does not resolve."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(where[0]) for *_, where in found))
