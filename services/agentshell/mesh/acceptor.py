"""A gRPC server that takes calls as they come, however many come at once.

grpc.aio takes one call at a time, each over five rounds of the event loop: a burst comes in one by one, and where much
is under way a call waits for what all others do in five rounds. It has no option for that, so this reaches below its
surface: grpcio is pinned, and with a version that differs there no test could make a call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc.aio
from grpc._cython import cygrpc
from grpc.aio import _server

_ACCEPTORS = 32  # What comes beyond that waits for the next round.
_AioServer = cast("Any", cygrpc).AioServer  # It is compiled, and has no types.


def server(options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """Returns what `grpc.aio.server(options=options)` is, but for how calls come in. Needs a running loop.

    Its methods are found by their names (`add_generic_rpc_handlers`); none may be registered with it.
    """
    return cast("grpc.aio.Server", _Server(options))


class _Server(_server.Server):
    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _Acceptor(self._loop, None, (), (), tuple(options), None)


class _Acceptor(_AioServer):
    """Asks for many calls at once, and hands them to grpc.aio's own loop without a round of ours for each."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._acceptors: set[asyncio.Task[None]] = set()
        self._calls = deque[Any]()  # that nobody has asked for yet
        self._next: _Next

    def _make_request_call_future(self, _method: bytes | None) -> asyncio.Future[Any]:
        """Returns the next call, when it is there. It is asked for one at a time, as no method is registered."""
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
        except Exception as error:  # The server stops: calls not begun end like those it never took.
            self._calls.clear()
            if not self._next.done():
                self._next.set_exception(error)


class _Next(asyncio.Future[Any]):
    """One whose waiter goes on at once where it is done already, instead of in the next round."""

    def add_done_callback(self, fn: Callable[[asyncio.Future[Any]], object], *, context: Any = None) -> None:
        if self.done():
            fn(self)
        else:
            super().add_done_callback(fn, context=context)
