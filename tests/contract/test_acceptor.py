"""How calls are accepted: many at once, and while the server stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from agentshell.mesh import acceptor
from agentshell.mesh.methods import Methods

WAIT_SECONDS = 20.0
CALLS = 200  # more than are accepted at once


class Service(health_pb2_grpc.HealthServicer):
    """Answers once the number of calls that it waits for have arrived."""

    def __init__(self, waits_for: int) -> None:
        self._waits_for = waits_for
        self._come = 0
        self._all = asyncio.Event()
        self.first = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        self.first.set()
        self._come += 1
        if self._come >= self._waits_for:
            self._all.set()
        await self._all.wait()
        return pb.HealthCheckResponse()


async def _serve(service: Service) -> tuple[grpc.aio.Server, grpc.aio.Channel]:
    server = acceptor.server([])
    methods = Methods(lambda _, handler: handler)
    health_pb2_grpc.add_HealthServicer_to_server(service, cast("grpc.aio.Server", methods))
    server.add_generic_rpc_handlers([methods])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, grpc.aio.insecure_channel(f"127.0.0.1:{port}")


async def _code(channel: grpc.aio.Channel) -> grpc.StatusCode:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        await stub.Check(pb.HealthCheckRequest(), timeout=WAIT_SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_all_calls_that_come_at_once_are_served_at_once() -> None:
    server, channel = await _serve(Service(waits_for=CALLS))
    async with channel:
        codes = await asyncio.gather(*(_code(channel) for _ in range(CALLS)))
    await server.stop(0)
    assert Counter(codes) == {grpc.StatusCode.OK: CALLS}


async def test_a_server_that_stops_amid_a_burst_ends_each_of_its_calls() -> None:
    service = Service(waits_for=1)
    server, channel = await _serve(service)
    async with channel:
        calls = [asyncio.create_task(_code(channel)) for _ in range(CALLS)]
        await asyncio.wait_for(service.first.wait(), WAIT_SECONDS)
        await asyncio.wait_for(server.stop(WAIT_SECONDS), 2 * WAIT_SECONDS)
        codes = set(await asyncio.gather(*calls))
    assert grpc.StatusCode.OK in codes
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
