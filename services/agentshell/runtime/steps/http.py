"""The step that calls an external service over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

from google.protobuf.struct_pb2 import Value

from agentshell.content import fill, plain_of, text_of
from agentshell.mesh import call, errors
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.steps.step import Emit
from kfm.content.v1.content_pb2 import ROLE_TOOL, Message, Part, ToolResult
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult

if TYPE_CHECKING:  # It takes a fifth of a second to import: only who calls an external service pays for it.
    import httpx2

_CONNECT_SECONDS = 10.0
_MAX_RETRY_SECONDS = 24 * 60 * 60
# Protobuf reads no message of more than a hundred levels: a level of JSON is three, and what is around it a dozen.
_MAX_DEPTH = 24
_PORTS = {"http": 80, "https": 443}
_TRANSIENT_STATUSES = frozenset({408, 425, 429})
# They say where the request goes, and where it ends: not a plan's to decide.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json\b", re.IGNORECASE)


class HttpRunner:
    """Calls hosts that are allowed: `host` at its scheme's own port, `host:port` at that one. Follows no redirects."""

    def __init__(self, hosts: Sequence[str], max_bytes: int) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._max_bytes = max_bytes
        self._client: httpx2.AsyncClient | None = None

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        import httpx2

        url = self._url(request.step.http.uri)
        headers, body = _content(request)
        try:
            sent = self._open().build_request(request.step.http.method, url, headers=headers, content=body)
            async with asyncio.timeout(call.current().remaining()):
                response = await self._open().send(sent, stream=True)
                try:
                    _check(response)
                    output = _result(request.step.step_id, response, await self._read(response))
                finally:
                    await response.aclose()
        except (httpx2.LocalProtocolError, UnicodeEncodeError) as error:
            raise errors.invalid("step.http", f"is not a request that HTTP has: {error}") from None
        except httpx2.TransportError as error:
            raise AgentShellError(
                error_pb2.ERROR_REASON_HTTP_UNAVAILABLE,
                f"{url.host} cannot be reached, or broke off: {type(error).__name__}; it is tried again",
                metadata={"host": url.host},
            ) from error
        return StepResult(output=Message(role=ROLE_TOOL, parts=[Part(tool_result=output)]), provider=url.host)

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

    def _url(self, uri: str) -> httpx2.URL:
        import httpx2

        try:
            url = httpx2.URL(uri)
        except httpx2.InvalidURL as error:
            raise errors.invalid("step.http.uri", f"is not a URI: {error}") from None
        if url.scheme not in _PORTS or url.userinfo:
            raise errors.invalid("step.http.uri", "must begin with http:// or https://, and have no user or password")
        host = url.netloc.decode("ascii")  # Without a port where that is the scheme's own.
        if self._hosts.isdisjoint((host, f"{host}:{_PORTS[url.scheme]}")):
            raise AgentShellError(
                error_pb2.ERROR_REASON_HOST_NOT_ALLOWED,
                f"host {host!r} is not allowed; an operator adds it to configuration key 'runtime.http_hosts'",
                metadata={"host": host, "key": "runtime.http_hosts"},
            )
        return url

    async def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._max_bytes:
                raise AgentShellError(
                    error_pb2.ERROR_REASON_TOO_LARGE,
                    f"{response.url.host} answers with more than {self._max_bytes} bytes; ask for less, "
                    "or raise configuration key 'runtime.max_http_bytes'",
                    metadata={"host": response.url.host, "limit_bytes": str(self._max_bytes)},
                )
        return bytes(body)


def _content(request: StepRequest) -> tuple[dict[str, str], bytes]:
    """Returns the headers and the body to send."""
    step = request.step.http
    headers = {name.lower(): value for name, value in step.headers.items()}
    if refused := sorted(_OWN_HEADERS & headers.keys()):
        raise errors.invalid("step.http.headers", f"{refused[0]!r} is the shell's to set; leave it out")
    headers["idempotency-key"] = request.step.step_id
    if step.body or not request.step.input:
        return headers, step.body
    is_json = isinstance(plain_of(request.input), dict | list)
    headers.setdefault("content-type", "application/json" if is_json else "text/plain; charset=utf-8")
    return headers, text_of(request.input).encode()


def _check(response: httpx2.Response) -> None:
    """Raises HTTP_UNAVAILABLE for what may pass, HTTP_REFUSED for any other status that is no success."""
    host, status = response.url.host, response.status_code
    metadata = {"host": host, "status": str(status)}
    if status in _TRANSIENT_STATUSES or status >= 500:
        raise AgentShellError(
            error_pb2.ERROR_REASON_HTTP_UNAVAILABLE,
            f"{host} answers {status}; it is tried again",
            metadata=metadata,
            retry_delay=_retry_delay(response.headers.get("retry-after", ""), datetime.now(UTC)),
        )
    if not 200 <= status < 300:
        advice = "; redirects are not followed: ask where it leads" if 300 <= status < 400 else ""
        raise AgentShellError(
            error_pb2.ERROR_REASON_HTTP_REFUSED, f"{host} answers {status}{advice}", metadata=metadata
        )
    if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
        message = f"{host} answers in encoding {encoding!r}, which was not asked for"
        raise AgentShellError(error_pb2.ERROR_REASON_HTTP_REFUSED, message, metadata=metadata)


def _result(call_id: str, response: httpx2.Response, body: bytes) -> ToolResult:
    content_type = response.headers.get("content-type", "")
    result = ToolResult(call_id=call_id)
    fields = result.output.struct_value.fields
    fields["status"].number_value = response.status_code
    fields["headers"].struct_value.fields["content-type"].string_value = content_type
    try:
        text = body.decode(response.charset_encoding or "utf-8", errors="replace")
    except (LookupError, ValueError):  # A character set that there is not.
        text = body.decode(errors="replace")
    fields["body"].CopyFrom(_value(text) if _JSON.match(content_type) else Value(string_value=text))
    return result


def _value(text: str) -> Value:
    """Returns a text read as JSON; as it is where it is none, or goes too deep."""
    value = Value()
    try:
        read = json.loads(text)
        fill(value, read)
    except (ValueError, RecursionError):
        return Value(string_value=text)
    return value


def _retry_delay(header: str, now: datetime) -> timedelta | None:
    """Returns how long to wait, of a number of seconds or a date."""
    try:
        delay = timedelta(seconds=float(header)) if header[:1].isdigit() else parsedate_to_datetime(header) - now
    except (ValueError, TypeError, OverflowError):
        return None
    return delay if timedelta(0) <= delay <= timedelta(seconds=_MAX_RETRY_SECONDS) else None
