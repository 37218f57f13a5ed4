"""Bounded access to the Web for services: only to hosts that an operator names, at public addresses."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

from google.protobuf.struct_pb2 import Value

from agentshell.content import fill
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

if TYPE_CHECKING:  # Importing it takes a fifth of a second: only those who use the Web pay for that.
    import httpx2

_PORTS: Final = {"http": 80, "https": 443}
_CONNECT_SECONDS: Final = 10.0
_SHOWN_CHARACTERS: Final = 200
_JSON: Final = re.compile(r"application/(?:[\w.+-]+\+)?json\b", re.IGNORECASE)
# The part of IPv6 that the Internet routes, 6to4 and Teredo apart: both wrap an IPv4 address, which may be any.
_ROUTED: Final = IPv6Network("2000::/3")


class Web:
    """Sends requests to `hosts`: `host` at its scheme's own port, `host:port` at that one. No redirects, no proxy.

    Connects only to addresses that are public, or are among `hosts` themselves. `key` is the configuration key of
    `hosts`.
    """

    def __init__(self, hosts: Collection[str], key: str) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._key = key
        self._client: httpx2.AsyncClient | None = None

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.aclose()

    def allows(self, url: httpx2.URL) -> bool:
        """Returns whether an operator names the URL's host."""
        return not self._hosts.isdisjoint(spellings(url))

    @asynccontextmanager
    async def request(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str], content: bytes = b""
    ) -> AsyncGenerator[httpx2.Response]:
        """Yields the response to a request, whose body is yet to be `read`.

        Raises HOST_NOT_ALLOWED for an address that is not public, httpx2.HTTPError, and UnicodeEncodeError for headers
        that HTTP cannot carry. The caller has checked that the host is allowed, and bounds the time.
        """
        client = self._client = self._client or self.new_client({})
        response = await client.send(client.build_request(method, url, headers=headers, content=content), stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    def new_client(self, headers: Mapping[str, str], max_body_bytes: int | None = None) -> httpx2.AsyncClient:
        """Returns a separate client, for a library that makes requests itself; `headers` go with all of them.

        A body longer than `max_body_bytes` is cut off with an error. The caller has checked the hosts: a library does
        not.
        """
        import httpx2

        from agentshell.mesh.web_transport import Transport

        return httpx2.AsyncClient(
            transport=Transport(self._choose, max_body_bytes),
            follow_redirects=False,  # A redirect may lead to a host that is not allowed.
            trust_env=False,  # No proxy: it would see the request, and choose where it goes.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # Or one tenant's would go with another's call.
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            # No compression: a few bytes cannot become many.
            headers={"Accept-Encoding": "identity", "User-Agent": "agentshell", **headers},
        )

    def _choose(self, host: str, port: int, addresses: Sequence[str]) -> Sequence[str]:
        """Returns the addresses of a host that may be connected to. Raises HOST_NOT_ALLOWED if none of them may."""
        found = [it for it in addresses if is_public(it) or not self._hosts.isdisjoint(_listed(it, port))]
        if addresses and not found:
            shown = host[:_SHOWN_CHARACTERS]
            raise AgentShellError(
                error_pb2.ERROR_REASON_HOST_NOT_ALLOWED,
                f"host {shown!r} is at {addresses[0]}, which is not public; an operator who wants that adds the "
                f"address to configuration key {self._key!r}",
                metadata={"host": shown, "address": addresses[0], "key": self._key, "refused_by": "operator"},
            )
        return found


def parse(text: str) -> httpx2.URL:
    """Returns the URL of a page. Raises ValueError if the text is not one, or has a user or password."""
    import httpx2

    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, TypeError) as error:
        raise ValueError(f"is not a URL: {error}") from None
    if url.scheme not in _PORTS or url.userinfo:
        raise ValueError("must begin with http:// or https://, and have no user or password")
    return url


def host_of(url: httpx2.URL) -> str:
    """Returns the host of a URL, with its port unless that is the scheme's own."""
    return url.netloc.decode("ascii")[:_SHOWN_CHARACTERS]


def spellings(url: httpx2.URL) -> Collection[str]:
    """Returns the ways in which a list of hosts may name a URL's host."""
    name = url.netloc.decode("ascii")
    return (name, f"{name}:{_PORTS[url.scheme]}")


async def read(response: httpx2.Response, spend: Callable[[int], None]) -> bytes:
    """Returns the body. `spend` gets the size of each chunk that arrives, and raises if that is too much."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        spend(len(chunk))
        body += chunk
    return bytes(body)


def text_of(response: httpx2.Response, body: bytes) -> str:
    """Returns a body as text, with undecodable bytes replaced."""
    try:
        return body.decode(response.charset_encoding or "utf-8", errors="replace")
    except (LookupError, ValueError):  # No such character set.
        return body.decode(errors="replace")


def value_of(response: httpx2.Response, body: bytes) -> Value:
    """Returns a body by its content type: JSON if it can be parsed and fits a message, otherwise text."""
    text = text_of(response, body)
    if _JSON.match(response.headers.get("content-type", "")):
        value = Value()
        with suppress(ValueError, RecursionError):
            fill(value, json.loads(text))
            return value
    return Value(string_value=text)


def is_public(address: str) -> bool:
    """Returns whether an IP address is on the public Internet, however it is written or wrapped."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is None:
            return found in _ROUTED and found.is_global and not (found.sixtofour or found.teredo)
        found = found.ipv4_mapped
    return _is_public_v4(found)


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not address.is_multicast


def _listed(address: str, port: int) -> Collection[str]:
    name = f"[{address}]" if ":" in address else address
    return (name, f"{name}:{port}")
