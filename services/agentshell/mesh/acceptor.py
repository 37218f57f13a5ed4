"""A gRPC server that accepts calls as they arrive, however many arrive at once.

grpc.aio accepts one call at a time and takes five iterations of the event loop for each: a burst is accepted one by
one, and under load each call waits out five iterations of everyone else's work. No option changes this, so this module
relies on grpcio's internals: grpcio is pinned, and with different internals no test could make a call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc.aio
from grpc._cython import cygrpc
from grpc.aio import _server

_ACCEPTORS = 32  # Calls beyond that wait for the next iteration.
_AioServer = cast("Any", cygrpc).AioServer  # Compiled, and without types.


def server(options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """Returns a server like `grpc.aio.server(options=options)`, except in how it accepts calls. Needs a running loop.

    Its methods are looked up by name (`add_generic_rpc_handlers`); none may be registered with it.
    """
    return cast("grpc.aio.Server", _Server(options))


class _Server(_server.Server):
    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _Acceptor(self._loop, None, (), (), tuple(options), None)


class _Acceptor(_AioServer):
    """Requests many calls at once, and hands them to grpc.aio's own loop without an extra iteration for each."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._acceptors: set[asyncio.Task[None]] = set()
        self._calls = deque[Any]()  # Accepted, but not yet asked for by grpc.aio's loop.
        self._next: _Next

    def _make_request_call_future(self, _method: bytes | None) -> asyncio.Future[Any]:
        """Returns a future of the next call. As no method is registered, grpc.aio asks for one at a time."""
        while len(self._acceptors) < _ACCEPTORS:
            acceptor = asyncio.create_task(self._accept(), name="acceptor of calls")
            self._acceptors.add(acceptor)
            acceptor.add_done_callback(self._acceptors.discard)
        self._next = _Next()
        if self._calls:
            self._next.set_result(self._calls.popleft())
        return self._next

    async def _accept(self) -> None:
        try:
            while True:
                call = await self._request_call()
                if self._next.done():
                    self._calls.append(call)
                else:
                    self._next.set_result(call)
        except Exception as error:  # The server is stopping: calls not yet begun end like those never accepted.
            self._calls.clear()
            if not self._next.done():
                self._next.set_exception(error)


class _Next(asyncio.Future[Any]):
    """A future whose waiter continues at once if it is already done, rather than in the next iteration."""

    def add_done_callback(self, fn: Callable[[asyncio.Future[Any]], object], *, context: Any = None) -> None:
        if self.done():
            fn(self)
        else:
            super().add_done_callback(fn, context=context)
