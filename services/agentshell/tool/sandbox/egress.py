"""What tools get from the Web. The host goes there for them: to hosts that both a pack and an operator name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final

from agentshell.mesh.config import ToolSecretConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.tool.sandbox.limits import Budget
from kfm.error.v1 import error_pb2

if TYPE_CHECKING:  # It takes a fifth of a second to import: only who goes to the Web pays for it.
    import httpx2

_CONNECT_SECONDS: Final = 10.0
_PORTS: Final = {"http": 80, "https": 443}
# They say where a request goes, where it ends, and how the answer is packed: not a tool's to decide.
_OWN_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})
_SHOWN_CHARACTERS: Final = 200


class EgressError(Exception):
    """The host went, and it went wrong: the tool is told so."""


class Egress:
    """Goes to the hosts that an operator allows, and adds the secrets that go with them. Follows no redirects."""

    def __init__(
        self, hosts: Collection[str], secrets: Sequence[ToolSecretConfig], environment: Mapping[str, str]
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._secrets = secrets
        self._environment = environment
        self._client: httpx2.AsyncClient | None = None

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def get(
        self, personality_id: str, declared: Collection[str], url: str, headers: Mapping[str, str], budget: Budget
    ) -> dict[str, Any]:
        """Returns `status`, `headers` and `text` of what a URL answers.

        Raises EgressError, HOST_NOT_ALLOWED and TOOL_EGRESS_LIMIT.
        """
        import httpx2

        try:
            target = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError) as error:
            raise EgressError(f"not a URL: {error}") from None
        host = self._allowed(target, declared, budget.tool)
        sent = {name: value for name, value in headers.items() if name.lower() not in _OWN_HEADERS}
        budget.spend_bytes(len(url) + sum(len(name) + len(value) for name, value in sent.items()))
        for secret in self._secrets:
            if secret.host.lower() in host and personality_id in secret.personalities:
                sent = {name: value for name, value in sent.items() if name.lower() != secret.header.lower()}
                sent[secret.header] = self._environment.get(secret.value_env, "")
        try:
            async with self._open().stream("GET", target, headers=sent) as response:
                body = await _read(response, budget)
        except (httpx2.HTTPError, UnicodeEncodeError) as error:
            raise EgressError(f"{target.host} cannot be reached, or broke off: {type(error).__name__}") from None
        said = {name.lower(): value for name, value in response.headers.items()}
        return {"status": response.status_code, "headers": said, "text": _text(response, body)}

    def _allowed(self, target: httpx2.URL, declared: Collection[str], tool: str) -> Collection[str]:
        """Returns the ways to write a target's host, if it is allowed. Raises EgressError and HOST_NOT_ALLOWED."""
        if target.scheme not in _PORTS or target.userinfo:
            raise EgressError("a URL must begin with http:// or https://, and have no user or password")
        name = target.netloc.decode("ascii")  # Without a port where that is the scheme's own.
        written = (name, f"{name}:{_PORTS[target.scheme]}")
        for hosts, fix in (
            ({host.lower() for host in declared}, "its pack's manifest must name it in abilities.http_hosts"),
            (self._hosts, "an operator must add it to configuration key 'tool.http_hosts'"),
        ):
            if hosts.isdisjoint(written):
                raise AgentShellError(
                    error_pb2.ERROR_REASON_HOST_NOT_ALLOWED,
                    f"tool {tool!r} may not go to {name[:_SHOWN_CHARACTERS]!r}: {fix}",
                    metadata={"tool": tool, "host": name[:_SHOWN_CHARACTERS]},
                )
        return written

    def _open(self) -> httpx2.AsyncClient:
        if self._client is None:
            import httpx2

            self._client = httpx2.AsyncClient(
                follow_redirects=False,  # Where one leads may be a host that is not allowed.
                trust_env=False,  # No proxy: it would see the request, and choose where it goes.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # Else one tenant's go with another's call.
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
                # What is read is what was sent: a few bytes cannot become many.
                headers={"Accept-Encoding": "identity", "User-Agent": "agentshell"},
            )
        return self._client


async def _read(response: httpx2.Response, budget: Budget) -> bytes:
    budget.spend_bytes(sum(len(name) + len(value) for name, value in response.headers.raw))
    body = bytearray()
    async for chunk in response.aiter_raw():
        budget.spend_bytes(len(chunk))
        body += chunk
    return bytes(body)


def _text(response: httpx2.Response, body: bytes) -> str:
    try:
        return body.decode(response.charset_encoding or "utf-8", errors="replace")
    except (LookupError, ValueError):  # A character set that there is not.
        return body.decode(errors="replace")
