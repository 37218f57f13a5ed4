"""A vendor's SDK: its client, opened at the first call with the current key, and its exceptions, turned into ours.

An SDK takes up to a second and 60 MB to import: only a process that calls its vendor pays for that, off the event loop.
All SDKs use our connections, so that timeouts are the same, and none retries by itself.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from agentshell.provider.adapters import failure
from agentshell.provider.adapters.adapter import Access
from agentshell.provider.adapters.failure import Failure, Kind, Refused

if TYPE_CHECKING:
    from agentshell.provider.adapters.http import Http

_C = TypeVar("_C")

Connect = Callable[[str, "Http"], _C]
Explain = Callable[[Exception], "Failure | None"]


class Sdk(Generic[_C]):
    """The SDK of one vendor, for one adapter.

    `module` is imported at the first call. `connect` makes a client with a key, over our connections. `explain` reads
    the SDK's own exceptions, and returns None for any other.
    """

    def __init__(self, access: Access, module: str, connect: Connect[_C], explain: Explain) -> None:
        self._access = access
        self._module = module
        self._connect = connect
        self._explain = explain
        self._http: Http | None = None
        self._client: tuple[str, _C] | None = None

    async def open(self) -> _C:
        """Returns the client, a new one if the key has changed. Raises PROVIDER_KEY_INVALID."""
        key = self._access.key.read()
        if self._http is None:
            http = await asyncio.to_thread(_prepare, self._module, self._access.silence_seconds)
            self._http = self._http or http  # Another call may have got here first.
        if self._client is None or self._client[0] != key:
            self._client = (key, self._connect(key, self._http))
        return self._client[1]

    @contextmanager
    def failing(self, model: str) -> Generator[None]:
        """Turns exceptions within the block into our errors."""
        try:
            yield
        except AgentShellError:
            raise
        except Exception as error:
            found = self._explain(error) or _read(error)
            if found is None:
                raise errors.of(error) from error
            raise self.error(found, model, error) from error

    def error(self, found: Failure, model: str, cause: Exception | None = None) -> AgentShellError:
        """Returns a failure as our error."""
        return failure.error(found, self._access.provider, model, self._access.key, cause)

    def cut(self, model: str) -> AgentShellError:
        """Returns the error for an answer that was cut off."""
        return self.error(Failure(Kind.CONNECTION), model)

    async def close(self) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.close()


def _read(error: Exception) -> Failure | None:
    import aiohttp
    import httpx2

    match error:
        case Refused():
            return error.failure
        case httpx2.TimeoutException() | TimeoutError():
            return Failure(Kind.TIMEOUT)
        case httpx2.TransportError() | aiohttp.ClientError() | OSError():
            return Failure(Kind.CONNECTION)
        case httpx2.DecodingError():
            return Failure(Kind.MALFORMED)
        case ValueError() | LookupError() | AttributeError() | TypeError():  # What we read is not what we expected.
            return Failure(Kind.MALFORMED, message=type(error).__name__)
        case _:
            return None


def _prepare(module: str, silence_seconds: float) -> Http:
    """Imports the SDK and returns its connections, none of them open yet."""
    importlib.import_module(module)
    from agentshell.provider.adapters.http import Http

    return Http(silence_seconds)
