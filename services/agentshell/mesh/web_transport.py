"""How `Web` connects: to addresses that may be gone to, and to no others. Imported where somebody goes to the Web."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any, Final

import httpcore2
import httpx2

# Addresses of a name that are tried, one after the other.
_MAX_ADDRESSES: Final = 4
# Connections that stay open with nothing to do.
_MAX_IDLE: Final = 20

Choose = Callable[[str, int, Sequence[str]], Sequence[str]]
"""Returns which of the addresses of a host, at a port, may be gone to. Raises where that is none."""


class Transport(httpx2.AsyncHTTPTransport):
    """httpx2's own, but for how it connects, which httpx2 lets nobody say. Bodies break off at `max_body_bytes`."""

    def __init__(self, choose: Choose, max_body_bytes: int | None) -> None:
        # Not the base's, which does nothing else but make a pool that connects anywhere.
        tls = httpx2.create_ssl_context(trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls,
            network_backend=_Guard(choose),
            max_connections=None,  # Who makes requests bounds them; ten, the pool's own, had all tenants wait in line.
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
    """Looks a name up, and connects to what was found: nobody looks it up again, and finds something else."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._real: Any = httpcore2.AnyIOBackend()  # A stand-in to the type checker, for want of anyio.

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
    """A body that breaks off where it is too large."""

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
    """Returns the addresses of a host; none: its name is nobody's."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(where[0]) for *_, where in found))
