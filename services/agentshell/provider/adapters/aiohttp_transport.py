"""How the vendors' SDKs send: aiohttp below their httpx2, since its parser is in C, and httpx2's own is not.

Twice as many calls fit in the same CPU time. Failures are httpx2's, so that the SDKs tell a timeout from a lost
connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager

import aiohttp
import httpx2


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends requests over connections of its own, kept open for `keep_seconds` after their last use.

    How many there are at once is decided above.
    """

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._tls = httpx2.create_ssl_context()
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Returns when the head of the response is there. Raises httpx2.TransportError."""
        if self._session is None:  # Made within the loop that it is of.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keep_seconds, ssl=self._tls),
                auto_decompress=False,  # httpx2 does it.
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        seconds = request.extensions.get("timeout", {})
        timeout = aiohttp.ClientTimeout(sock_connect=seconds.get("connect"), sock_read=seconds.get("read"))
        with _httpx2_errors(request):
            response = await self._session.request(
                request.method,
                str(request.url),
                # As they are: httpx2 guesses the encoding anew for each that is asked for.
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
                data=request.content,
                allow_redirects=False,
                timeout=timeout,
            )
        return httpx2.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response, request),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()


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
        self._response.release()  # To be used again if it was read to its end, and closed otherwise.


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
    except (aiohttp.ClientError, OSError) as error:  # Cut, or not HTTP.
        raise httpx2.RemoteProtocolError(str(error), request=request) from error
