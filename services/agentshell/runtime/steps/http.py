"""The step that calls an external service over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from agentshell.content import plain_of, text_of
from agentshell.mesh import call, errors, web
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.web import Web
from agentshell.runtime.steps.step import Emit
from kfm.content.v1.content_pb2 import ROLE_TOOL, Message, Part, ToolResult
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult

if TYPE_CHECKING:  # Importing it takes a fifth of a second: only callers of external services pay for it.
    import httpx2

_HOSTS_KEY = "runtime.http_hosts"
_MAX_RETRY_SECONDS = 24 * 60 * 60
_TRANSIENT_STATUSES = frozenset({408, 425, 429})
# These control where the request goes and where it ends, so a plan may not set them.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})


class HttpRunner:
    """Calls allowed hosts through `Web`."""

    def __init__(self, hosts: Sequence[str], max_bytes: int) -> None:
        self._web = Web(hosts, _HOSTS_KEY)
        self._max_bytes = max_bytes

    async def close(self) -> None:
        """Closes the connections."""
        await self._web.close()

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        import httpx2

        url = self._url(request.step.http.uri)
        headers, body = _content(request)
        try:
            async with (
                asyncio.timeout(call.current().remaining()),
                self._web.request(request.step.http.method, url, headers, body) as response,
            ):
                _check(response)
                output = _result(request.step.step_id, response, await self._read(response))
        except (httpx2.LocalProtocolError, UnicodeEncodeError) as error:
            raise errors.invalid("step.http", f"is not a valid HTTP request: {error}") from None
        except httpx2.TransportError as error:
            raise AgentShellError(
                error_pb2.ERROR_REASON_HTTP_UNAVAILABLE,
                f"{url.host} cannot be reached, or broke the connection: {type(error).__name__}; it is tried again",
                metadata={"host": url.host},
            ) from error
        return StepResult(output=Message(role=ROLE_TOOL, parts=[Part(tool_result=output)]), provider=url.host)

    def _url(self, uri: str) -> httpx2.URL:
        try:
            url = web.parse(uri)
        except ValueError as error:
            raise errors.invalid("step.http.uri", str(error)) from None
        if not self._web.allows(url):
            host = web.host_of(url)
            raise AgentShellError(
                error_pb2.ERROR_REASON_HOST_NOT_ALLOWED,
                f"host {host!r} is not allowed; an operator adds it to configuration key {_HOSTS_KEY!r}",
                metadata={"host": host, "key": _HOSTS_KEY},
            )
        return url

    async def _read(self, response: httpx2.Response) -> bytes:
        left = self._max_bytes

        def spend(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise AgentShellError(
                    error_pb2.ERROR_REASON_TOO_LARGE,
                    f"{response.url.host} answers with more than {self._max_bytes} bytes; request less, "
                    "or raise configuration key 'runtime.max_http_bytes'",
                    metadata={"host": response.url.host, "limit_bytes": str(self._max_bytes)},
                )

        return await web.read(response, spend)


def _content(request: StepRequest) -> tuple[dict[str, str], bytes]:
    """Returns the headers and the body to send."""
    step = request.step.http
    headers = {name.lower(): value for name, value in step.headers.items()}
    if refused := sorted(_OWN_HEADERS & headers.keys()):
        raise errors.invalid("step.http.headers", f"{refused[0]!r} is set by the shell; leave it out")
    headers["idempotency-key"] = request.step.step_id
    if step.body or not request.step.input:
        return headers, step.body
    is_json = isinstance(plain_of(request.input), dict | list)
    headers.setdefault("content-type", "application/json" if is_json else "text/plain; charset=utf-8")
    return headers, text_of(request.input).encode()


def _check(response: httpx2.Response) -> None:
    """Raises HTTP_UNAVAILABLE for a transient status, HTTP_REFUSED for any other that is not a success."""
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
        advice = "; redirects are not followed: request the new location itself" if 300 <= status < 400 else ""
        raise AgentShellError(
            error_pb2.ERROR_REASON_HTTP_REFUSED, f"{host} answers {status}{advice}", metadata=metadata
        )
    if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
        message = f"{host} answers in encoding {encoding!r}, which was not requested"
        raise AgentShellError(error_pb2.ERROR_REASON_HTTP_REFUSED, message, metadata=metadata)


def _result(call_id: str, response: httpx2.Response, body: bytes) -> ToolResult:
    content_type = response.headers.get("content-type", "")
    result = ToolResult(call_id=call_id)
    fields = result.output.struct_value.fields
    fields["status"].number_value = response.status_code
    fields["headers"].struct_value.fields["content-type"].string_value = content_type
    fields["body"].CopyFrom(web.value_of(response, body))
    return result


def _retry_delay(header: str, now: datetime) -> timedelta | None:
    """Returns the delay that a Retry-After header gives, as seconds or a date."""
    try:
        delay = timedelta(seconds=float(header)) if header[:1].isdigit() else parsedate_to_datetime(header) - now
    except (ValueError, TypeError, OverflowError):
        return None
    return delay if timedelta(0) <= delay <= timedelta(seconds=_MAX_RETRY_SECONDS) else None
