"""What OpenAI's and Anthropic's SDKs have in common: both are made by one generator, Stainless."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from agentshell.provider.adapters import failure, streaming
from agentshell.provider.adapters.failure import Failure, Kind
from agentshell.provider.adapters.sdk import Explain

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from httpx2 import URL

    from agentshell.provider.adapters.http import Http


class SdkClient(Protocol):
    """An SDK's client, with a key."""

    @property
    def base_url(self) -> URL:
        """The vendor's URL."""
        ...

    @property
    def auth_headers(self) -> dict[str, str]:
        """The headers that carry the key."""
        ...

    @property
    def default_headers(self) -> Mapping[str, Any]:
        """The SDK's other headers; a value that is not a string omits its header."""
        ...


_C = TypeVar("_C", bound=SdkClient)


class Client(Generic[_C]):
    """An SDK's client, and a way to stream answers without it."""

    def __init__(self, sdk: _C, http: Http, *, has_key: bool = True) -> None:
        self.sdk = sdk
        self._http = http
        self._url = str(sdk.base_url).rstrip("/")
        headers = {**sdk.default_headers, **(sdk.auth_headers if has_key else {})}
        self._headers = [(name, value) for name, value in headers.items() if isinstance(value, str)]

    async def stream(self, path: str, body: Mapping[str, Any]) -> ClientResponse:
        """Returns a streamed answer, as `streaming.ask` does."""
        return await streaming.ask(self._http, self._url + path, self._headers, {**body, "stream": True})


def explain(module: str) -> Explain:
    """Returns a function that reads the exceptions of the SDK `module`."""

    def read(error: Exception) -> Failure | None:
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
            case _:
                return None

    return read
