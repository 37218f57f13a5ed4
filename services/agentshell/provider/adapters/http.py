"""Connections to a vendor, over aiohttp, because its parser is in C and httpx2's own is not.

Streamed answers are requested here directly, with the headers of the vendor's SDK: taking a request through all the
SDK's objects costs more than the rest of a call. The SDKs send everything else over the same connections.
"""

from __future__ import annotations

import urllib.request
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import contextmanager
from typing import TypeAlias
from urllib.parse import urlsplit

import aiohttp
import httpx2

CONNECT_SECONDS = 10.0
_KEEP_SECONDS = 60.0

Headers: TypeAlias = Iterable[tuple[str, str]]


class Http:
    """Connections, kept open for a minute after their last use. Their number is limited above.

    A vendor that sends nothing for `silence_seconds` has failed.
    """

    def __init__(self, silence_seconds: float) -> None:
        self._timeout = aiohttp.ClientTimeout(
            sock_connect=min(CONNECT_SECONDS, silence_seconds), sock_read=silence_seconds
        )
        self._tls = httpx2.create_ssl_context()
        self._session: aiohttp.ClientSession | None = None
        self._has_proxies = bool(urllib.request.getproxies().keys() - {"no"})

    def client(self) -> httpx2.AsyncClient:
        """Returns a client for an SDK, over these connections."""
        return httpx2.AsyncClient(transport=_Transport(self))

    async def request(
        self, method: str, url: str, headers: Headers, body: bytes, *, decompress: bool = True
    ) -> aiohttp.ClientResponse:
        """Returns a response once its head has arrived; the caller releases it. Raises aiohttp's errors."""
        if self._session is None:  # Made within the event loop that it belongs to.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_SECONDS, ssl=self._tls)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return await self._session.request(
            method,
            url,
            headers=headers,
            data=body,
            allow_redirects=False,
            auto_decompress=decompress,
            proxy=_proxy(url) if self._has_proxies else None,
            timeout=self._timeout,
        )

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()


class _Transport(httpx2.AsyncBaseTransport):
    """Sends an SDK's requests over our connections. Raises httpx2's errors, which SDKs tell apart."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Returns a response once its head has arrived. Raises httpx2.TransportError."""
        # Taken raw: httpx2 guesses the encoding again for each one that is looked up.
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        with _httpx2_errors(request):
            # httpx2 decompresses.
            response = await self._http.request(
                request.method, str(request.url), headers, request.content, decompress=False
            )
        return httpx2.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response, request),
            extensions={"http_version": b"HTTP/1.1"},
        )


class _Body(httpx2.AsyncByteStream):
    """The body of a response, as it comes."""

    def __init__(self, response: aiohttp.ClientResponse, request: httpx2.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        with _httpx2_errors(self._request):
            async for data in self._response.content.iter_any():
                yield data

    async def aclose(self) -> None:
        self._response.release()  # Reuses the connection if this was read to its end, and closes it otherwise.


@contextmanager
def _httpx2_errors(request: httpx2.Request) -> Generator[None]:
    try:
        yield
    except TimeoutError as error:
        kind = httpx2.ConnectTimeout if isinstance(error, aiohttp.ConnectionTimeoutError) else httpx2.ReadTimeout
        raise kind(str(error), request=request) from error
    except aiohttp.ClientConnectorError as error:
        raise httpx2.ConnectError(str(error), request=request) from error
    except aiohttp.InvalidURL as error:
        raise httpx2.UnsupportedProtocol(str(error), request=request) from error
    except (aiohttp.ClientError, OSError) as error:  # Cut off, or not HTTP.
        raise httpx2.RemoteProtocolError(str(error), request=request) from error


def _proxy(url: str) -> str | None:
    """Returns the proxy that the environment sets for a URL; None: there is none."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    return None if found is None or urllib.request.proxy_bypass(parts.hostname or "") else found
