"""Web access for tools. The host makes their requests, as far as the call's grant allows, and adds the secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agentshell.mesh import web
from agentshell.mesh.config import ToolConfig, ToolSecretConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.web import Web
from agentshell.tool.sandbox.limits import Budget
from kfm.error.v1 import error_pb2

if TYPE_CHECKING:
    import httpx2

# They decide where a request goes, where it ends, and how the answer is encoded: not a tool's choice.
_OWN_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})


class EgressError(Exception):
    """The host made the request and it failed: the tool is told so."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host answered."""

    response: httpx2.Response
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return web.text_of(self.response, self.body)

    @property
    def headers(self) -> dict[str, str]:
        """The headers, by lower-case name."""
        return {name.lower(): value for name, value in self.response.headers.items()}


class Egress:
    """Sends requests to hosts that an operator allows; `environment` holds the secrets. Follows no redirects."""

    def __init__(self, config: ToolConfig, environment: Mapping[str, str]) -> None:
        self.config = config
        self.web = Web(config.http_hosts, "tool.http_hosts")
        self._environment = environment

    async def close(self) -> None:
        """Closes the connections."""
        await self.web.close()

    async def send(
        self,
        budget: Budget,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str],
        content: bytes = b"",
        *,
        secrets: Sequence[ToolSecretConfig] = (),
        max_body_bytes: int | None = None,
    ) -> Answer:
        """Returns the answer of a URL that the caller's grant allows; `budget` pays for what is sent and received.

        Raises EgressError, HOST_NOT_ALLOWED, TOOL_EGRESS_LIMIT and TOO_LARGE.
        """
        import httpx2

        sent = {name: value for name, value in headers.items() if name.lower() not in _OWN_HEADERS}
        budget.spend_bytes(len(str(url)) + len(content) + sum(len(name) + len(value) for name, value in sent.items()))
        left = budget.egress_bytes if max_body_bytes is None else max_body_bytes

        def spend(count: int) -> None:
            nonlocal left
            left -= count
            budget.spend_bytes(count)
            if left < 0:
                raise _too_large(budget.tool, max_body_bytes or 0)

        try:
            async with (
                asyncio.timeout(self.config.max_seconds),
                self.web.request(method, url, self.with_secrets(sent, secrets), content) as response,
            ):
                budget.spend_bytes(sum(len(name) + len(value) for name, value in response.headers.raw))
                return Answer(response, await web.read(response, spend))
        except TimeoutError:
            raise EgressError(f"{url.host} does not answer within {self.config.max_seconds:g} s") from None
        except (httpx2.HTTPError, UnicodeEncodeError) as error:
            raise EgressError(
                f"{url.host} cannot be reached, or broke the connection: {type(error).__name__}"
            ) from None

    def with_secrets(self, headers: Mapping[str, str], secrets: Sequence[ToolSecretConfig]) -> dict[str, str]:
        """Returns the headers with the secrets set, which replace any of the same name."""
        own = {secret.header.lower(): self._environment.get(secret.value_env, "") for secret in secrets}
        return {name: value for name, value in headers.items() if name.lower() not in own} | own


def parse(url: str) -> httpx2.URL:
    """Returns the URL that a tool asks for. Raises EgressError."""
    try:
        return web.parse(url)
    except ValueError as error:
        raise EgressError(f"it {error}") from None


def page(answer: Answer) -> dict[str, Any]:
    """Returns an answer as tools see it."""
    return {"status": answer.response.status_code, "headers": answer.headers, "text": answer.text}


def _too_large(tool: str, limit_bytes: int) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_TOO_LARGE,
        f"tool {tool!r} gets an answer of more than {limit_bytes} bytes: ask it for less",
        metadata={"tool": tool, "limit_bytes": str(limit_bytes)},
    )
