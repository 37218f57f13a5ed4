"""Reads what happens in a turn to its end, across broken connections."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from kfm.turn.v1.turn_event_pb2 import TurnUpdate
from kfm.turn.v1.turn_service_pb2 import RunTurnRequest, RunTurnResponse, WatchTurnRequest, WatchTurnResponse
from xenocomm import errors
from xenocomm.errors import XenocommError

if TYPE_CHECKING:
    from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceAsyncStub

_FIRST_DELAY_SECONDS = 0.05
_MAX_DELAY_SECONDS = 2.0
_JITTER = 0.2

_Call = (
    grpc.aio.UnaryStreamCall[RunTurnRequest, RunTurnResponse]
    | grpc.aio.UnaryStreamCall[WatchTurnRequest, WatchTurnResponse]
)


class TurnStream(AsyncIterator[TurnUpdate]):
    """The updates of a turn, each once and in order, until it is over.

    If the connection breaks or the server goes away, the stream resumes from its cursor; if the turn was not yet
    acknowledged, it repeats the request under the same request id, which starts no second turn. It raises XenocommError
    when a call fails for any other reason, and after `timeout_seconds`. To stop early, call `aclose`.
    """

    def __init__(
        self, stub: TurnServiceAsyncStub, start: RunTurnRequest | WatchTurnRequest, timeout_seconds: float
    ) -> None:
        self._stub = stub
        self._start = start
        self._timeout_seconds = timeout_seconds
        self._updates = self._read()
        watched = start if isinstance(start, WatchTurnRequest) else WatchTurnRequest()
        self.turn_id = watched.turn_id
        """The turn's id; empty until it is acknowledged."""
        self.session_id = ""
        """The id of the conversation, if this stream started the turn; empty until that is acknowledged."""
        self.cursor = watched.cursor
        """Where `Client.watch` resumes. Updates come in batches; until a batch's last update, this is its beginning."""

    def __aiter__(self) -> TurnStream:
        return self

    async def __anext__(self) -> TurnUpdate:
        return await anext(self._updates)

    async def aclose(self) -> None:
        """Stops reading. The turn goes on."""
        await self._updates.aclose()

    async def _read(self) -> AsyncGenerator[TurnUpdate]:
        deadline = time.monotonic() + self._timeout_seconds
        delay = _FIRST_DELAY_SECONDS
        while True:
            call = self._call(deadline - time.monotonic())
            try:
                async for response in call:
                    delay = _FIRST_DELAY_SECONDS
                    if isinstance(response, RunTurnResponse):
                        self.turn_id, self.session_id = response.turn_id, response.session_id
                    for update in response.updates[:-1]:
                        yield update
                    self.cursor = response.cursor
                    for update in response.updates[-1:]:
                        yield update
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise self._late() from None
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + delay > deadline:
                    raise errors.from_rpc(error) from None
            finally:
                call.cancel()  # grpc does not end calls that are merely dropped.
            await asyncio.sleep(delay * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - not a secret
            delay = min(2 * delay, _MAX_DELAY_SECONDS)

    def _call(self, seconds: float) -> _Call:
        if isinstance(self._start, RunTurnRequest) and not self.turn_id:
            return self._stub.RunTurn(self._start, timeout=seconds)
        return self._stub.WatchTurn(WatchTurnRequest(turn_id=self.turn_id, cursor=self.cursor), timeout=seconds)

    def _late(self) -> XenocommError:
        what = f"turn {self.turn_id} was not over" if self.turn_id else "the turn was not acknowledged"
        return XenocommError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "DEADLINE_EXCEEDED",
            f"{what} after {self._timeout_seconds:g} s; what was acknowledged goes on: watch it, or allow more time",
            metadata={"turn_id": self.turn_id},
        )
