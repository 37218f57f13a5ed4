"""A vendor's SDK: its client, opened at the first call with the key there is, and its exceptions, made ours.

An SDK takes up to a second and 60 MB to import: only who calls its vendor pays for it, off the event loop. All SDKs
speak through an HTTP client of ours, so that timeouts and connections are the same, and none tries again by itself.
"""

from __future__ import annotations

import asyncio
import importlib
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from agentshell.provider.adapters import failure
from agentshell.provider.adapters.adapter import Access
from agentshell.provider.adapters.failure import Failure, Kind

if TYPE_CHECKING:
    import httpx2

_C = TypeVar("_C")

CONNECT_SECONDS = 10.0
_KEEP_SECONDS = 60.0

Connect = Callable[[str, "httpx2.AsyncClient"], _C]
Explain = Callable[[Exception], "Failure | None"]


class Sdk(Generic[_C]):
    """The SDK of one vendor, for one adapter.

    `module`: what is imported at the first call. `connect` makes a client with a key, over our HTTP client. `explain`
    reads the SDK's own exceptions; None: it is none of them.
    """

    def __init__(self, access: Access, module: str, connect: Connect[_C], explain: Explain) -> None:
        self._access = access
        self._module = module
        self._connect = connect
        self._explain = explain
        self._http: httpx2.AsyncClient | None = None
        self._client: tuple[str, _C] | None = None

    async def open(self) -> _C:
        """Returns the client. A key may be replaced while this runs. Raises PROVIDER_KEY_INVALID."""
        key = self._access.key.read()
        if self._http is None:
            http = await asyncio.to_thread(_prepare, self._module, self._access.silence_seconds)
            self._http = self._http or http  # Another call may have been here meanwhile.
        if self._client is None or self._client[0] != key:
            self._client = (key, self._connect(key, self._http))
        return self._client[1]

    @contextmanager
    def failing(self, model: str) -> Generator[None]:
        """Makes what fails within it our error."""
        try:
            yield
        except AgentShellError:
            raise
        except Exception as error:
            found = self._explain(error) or _transport(error)
            if found is None:
                raise errors.of(error) from error
            raise self.error(found, model, error) from error

    def error(self, found: Failure, model: str, cause: Exception | None = None) -> AgentShellError:
        """Returns a failure as our error."""
        return failure.error(found, self._access.provider, model, self._access.key, cause)

    def cut(self, model: str) -> AgentShellError:
        """The error for an answer that ended before its end."""
        return self.error(Failure(Kind.CONNECTION), model)

    async def close(self) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.aclose()


def timeout(silence_seconds: float) -> httpx2.Timeout:
    """Returns how long a vendor may take to be reached, and then to send anything."""
    import httpx2

    return httpx2.Timeout(silence_seconds, connect=min(CONNECT_SECONDS, silence_seconds))


def check_events(headers: Mapping[str, str]) -> None:
    """Raises ValueError where an answer is no stream of events, such as a proxy's page."""
    if not headers.get("content-type", "").startswith("text/event-stream"):
        raise ValueError(f"content-type {headers.get('content-type')!r} instead of text/event-stream")


def stainless(module: str) -> Explain:
    """Returns how the exceptions of OpenAI's and Anthropic's SDKs are read, which are alike."""

    def explain(error: Exception) -> Failure | None:
        sdk: Any = importlib.import_module(module)
        match error:
            case sdk.APITimeoutError():
                return Failure(Kind.TIMEOUT)
            case sdk.APIConnectionError():
                return Failure(Kind.CONNECTION)
            case sdk.APIResponseValidationError():
                return Failure(Kind.MALFORMED)
            case sdk.APIStatusError():
                failed: Any = error
                return failure.answered(failed.status_code, failed.response.headers, failed.body or failed.message)
            case sdk.APIError():  # Within a stream.
                failed = error
                return failure.answered(0, {}, failed.body or failed.message)
            case _:
                return None

    return explain


def _transport(error: Exception) -> Failure | None:
    import httpx2

    match error:
        case httpx2.TimeoutException():
            return Failure(Kind.TIMEOUT)
        case httpx2.TransportError():
            return Failure(Kind.CONNECTION)
        case httpx2.DecodingError():
            return Failure(Kind.MALFORMED)
        case ValueError() | LookupError() | AttributeError() | TypeError():  # What we read is not what we expect.
            return Failure(Kind.MALFORMED, message=type(error).__name__)
        case _:
            return None


def _prepare(module: str, silence_seconds: float) -> httpx2.AsyncClient:
    """Imports the SDK and returns an HTTP client, which has no connections yet."""
    importlib.import_module(module)
    import httpx2

    if urllib.request.getproxies().keys() - {"no"}:  # Only httpx2's own transport knows proxies, at twice the CPU time.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_SECONDS)
        return httpx2.AsyncClient(timeout=timeout(silence_seconds), limits=limits)
    from agentshell.provider.adapters.aiohttp_transport import AiohttpTransport

    return httpx2.AsyncClient(timeout=timeout(silence_seconds), transport=AiohttpTransport(_KEEP_SECONDS))
