"""Requests and reads a streamed answer without the vendor's SDK.

The SDK's client only supplies the URL and the headers. Its objects for each request and each event would cost more than
the rest of a call, and reject what a vendor's imitators leave out.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from agentshell.provider.adapters import failure
from agentshell.provider.adapters.adapter import Deltas
from agentshell.provider.adapters.answer import Answer
from agentshell.provider.adapters.events import Events
from agentshell.provider.adapters.failure import Failure, Refused
from agentshell.provider.adapters.sdk import Sdk
from kfm.provider.v1 import provider_service_pb2 as pb

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from agentshell.provider.adapters.http import Headers, Http

MAX_ERROR_BYTES = 64 * 1024
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Growth(Protocol):
    """Turns an API's events into an answer. `failed`: what the vendor says went wrong within the stream."""

    answer: Answer
    failed: Failure | None

    @property
    def is_whole(self) -> bool:
        """Whether its end has come."""
        ...

    def read(self, event: Mapping[str, Any]) -> None:
        """Adds an event."""
        ...

    def finish(self) -> pb.GenerateResponse:
        """Returns the whole answer."""
        ...


async def ask(http: Http, url: str, headers: Headers, body: Mapping[str, Any]) -> ClientResponse:
    """Returns an answer whose events are still to be read; the caller releases it.

    Raises Refused for an error status, ValueError if it is not a stream of events, and aiohttp's errors.
    """
    response = await http.request("POST", url, headers, _to_json(body).encode())
    try:
        if not response.ok:
            raise await _refused(response)
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):  # Such as a proxy's page.
            raise ValueError(f"content-type {kind!r} instead of text/event-stream")
    except BaseException:
        response.release()
        raise
    return response


async def converse(
    sdk: Sdk[Any], ask: Callable[[], Awaitable[ClientResponse]], growth: Growth, model: str
) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
    """Yields what the answer to `ask` grows by, batched as it arrives, and, last, the whole."""
    events = Events()
    with sdk.failing(model):
        response = await ask()
        try:
            async for data in response.content.iter_any():
                problem = _read(growth, events, data)
                if deltas := growth.answer.take():
                    yield deltas
                if problem:
                    raise problem
                if growth.failed:
                    raise sdk.error(growth.failed, model)
        finally:
            response.release()  # Reuses the connection if this was read to its end, and closes it otherwise.
        if not growth.is_whole:
            raise sdk.cut(model)
        yield growth.finish()


def _read(growth: Growth, events: Events, data: bytes) -> Exception | None:
    """Adds the next bytes. Returns what is wrong with them beyond what was added."""
    try:
        for event in events.feed(data):
            growth.read(event)
    except Exception as problem:
        return problem
    return None


async def _refused(response: ClientResponse) -> Refused:
    content = b""
    async for data in response.content.iter_any():
        content += data
        if len(content) > MAX_ERROR_BYTES:
            break
    text = content[:MAX_ERROR_BYTES].decode(errors="replace")
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Refused(failure.answered(response.status, headers, body), text)
