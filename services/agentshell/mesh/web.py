"""What services get from the Web, in bounds: from hosts that an operator names, at addresses that are public."""

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

if TYPE_CHECKING:  # It takes a fifth of a second to import: only who goes to the Web pays for it.
    import httpx2

_PORTS: Final = {"http": 80, "https": 443}
_CONNECT_SECONDS: Final = 10.0
_SHOWN_CHARACTERS: Final = 200
_JSON: Final = re.compile(r"application/(?:[\w.+-]+\+)?json\b", re.IGNORECASE)
# What the Internet routes of IPv6, 6to4 and Teredo apart: both wrap an address of IPv4, which may be anybody's.
_ROUTED: Final = IPv6Network("2000::/3")


class Web:
    """Goes to `hosts`: `host` at its scheme's own port, `host:port` at that one. Follows no redirects, and no proxy.

    A name is gone to at public addresses alone, or at those that are among `hosts` themselves. `key` is the
    configuration's that has `hosts`.
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
        """The response to a request, whose body is yet to be `read`.

        Raises HOST_NOT_ALLOWED for an address that is not public, httpx2.HTTPError, and UnicodeEncodeError for headers
        that HTTP does not have. The caller has checked that the host is allowed, and bounds the time.
        """
        client = self._client = self._client or self.new_client({})
        response = await client.send(client.build_request(method, url, headers=headers, content=content), stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    def new_client(self, headers: Mapping[str, str], max_body_bytes: int | None = None) -> httpx2.AsyncClient:
        """Returns a client of its own, for a library that makes requests itself, with headers that all of them get.

        A body of more than `max_body_bytes` breaks off. The library checks no hosts: its caller has.
        """
        import httpx2

        from agentshell.mesh.web_transport import Transport

        return httpx2.AsyncClient(
            transport=Transport(self._choose, max_body_bytes),
            follow_redirects=False,  # Where one leads may be a host that is not allowed.
            trust_env=False,  # No proxy: it would see the request, and choose where it goes.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # Else one tenant's go with another's call.
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            # What is read is what was sent: a few bytes cannot become many.
            headers={"Accept-Encoding": "identity", "User-Agent": "agentshell", **headers},
        )

    def _choose(self, host: str, port: int, addresses: Sequence[str]) -> Sequence[str]:
        """Returns the addresses of a host that may be gone to. Raises HOST_NOT_ALLOWED where none of them may."""
        found = [it for it in addresses if is_public(it) or not self._hosts.isdisjoint(_listed(it, port))]
        if addresses and not found:
            shown = host[:_SHOWN_CHARACTERS]
            raise AgentShellError(
                error_pb2.ERROR_REASON_HOST_NOT_ALLOWED,
                f"host {shown!r} is at {addresses[0]}, which is not public; an operator who means that adds the "
                f"address to configuration key {self._key!r}",
                metadata={"host": shown, "address": addresses[0], "key": self._key, "refused_by": "operator"},
            )
        return found


def parse(text: str) -> httpx2.URL:
    """Returns the URL of a page. Raises ValueError for what is none, or has a user or password."""
    import httpx2

    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, TypeError) as error:
        raise ValueError(f"is not a URL: {error}") from None
    if url.scheme not in _PORTS or url.userinfo:
        raise ValueError("must begin with http:// or https://, and have no user or password")
    return url


def host_of(url: httpx2.URL) -> str:
    """Returns the host of a URL, and its port where that is not the scheme's own."""
    return url.netloc.decode("ascii")[:_SHOWN_CHARACTERS]


def spellings(url: httpx2.URL) -> Collection[str]:
    """Returns the ways in which a list of hosts may name a URL's."""
    name = url.netloc.decode("ascii")
    return (name, f"{name}:{_PORTS[url.scheme]}")


async def read(response: httpx2.Response, spend: Callable[[int], None]) -> bytes:
    """Returns the body. `spend` is told the size of each piece that comes, and raises where that is too much."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        spend(len(chunk))
        body += chunk
    return bytes(body)


def text_of(response: httpx2.Response, body: bytes) -> str:
    """Returns a body as text; what is none is replaced."""
    try:
        return body.decode(response.charset_encoding or "utf-8", errors="replace")
    except (LookupError, ValueError):  # A character set that there is not.
        return body.decode(errors="replace")


def value_of(response: httpx2.Response, body: bytes) -> Value:
    """Returns a body as it says that it is: JSON, where that can be read and a message can carry it, else text."""
    text = text_of(response, body)
    if _JSON.match(response.headers.get("content-type", "")):
        value = Value()
        with suppress(ValueError, RecursionError):
            fill(value, json.loads(text))
            return value
    return Value(string_value=text)


def is_public(address: str) -> bool:
    """Returns whether an IP address is one of the public Internet's, however it is written or wrapped."""
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
