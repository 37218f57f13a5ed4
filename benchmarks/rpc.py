"""A unary RPC that does nothing, through all that our RPCs go through, beside one through a bare grpc.aio server.

Both servers are processes of their own with the same generated service, and one client with one channel calls each.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import grpc.aio
import uvloop

from agentshell.mesh.config import ServerConfig
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.server import Server
from benchmarks.bench import Bench
from benchmarks.figure import Figure, median
from benchmarks.processes import cpu_seconds
from kfm.tool.v1 import tool_service_pb2 as pb
from kfm.tool.v1.tool_service_pb2_grpc import (
    ToolServiceServicer,
    ToolServiceStub,
    add_ToolServiceServicer_to_server,
)

if TYPE_CHECKING:
    from kfm.tool.v1.tool_service_pb2_grpc import ToolServiceAsyncStub

Kind = Literal["mesh", "bare"]

_ROUNDS = 5
_ROUND_SECONDS = 1.5
_CALLERS = 50
_LONE_CALLS = 300
_CALL_SECONDS = 10.0
_SETTINGS = "no state; trace, metrics, credential, deadline and validation on every call"


class _Echo(ToolServiceServicer):
    async def ListTools(  # noqa: N802 - the RPC's name
        self, request: pb.ListToolsRequest, context: grpc.aio.ServicerContext[pb.ListToolsRequest, pb.ListToolsResponse]
    ) -> pb.ListToolsResponse:
        return pb.ListToolsResponse()

    async def InvokeTool(  # noqa: N802 - the RPC's name
        self, request: pb.InvokeToolRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[pb.InvokeToolResponse]:
        yield pb.InvokeToolResponse()


class _Place(NamedTuple):
    """Where a server runs, and its key."""

    pid: int
    address: str
    key: str


class _Reading(NamedTuple):
    calls_per_second: float
    cpu_microseconds: float  # of the server, per call
    lone_microseconds: float  # for a call while there is no other


async def measure(bench: Bench) -> list[Figure]:
    """Calls both servers in turn."""
    readings: dict[Kind, list[_Reading]] = {"mesh": [], "bare": []}
    async with _running("mesh") as mesh, _running("bare") as bare:
        for _ in range(bench.rounds(_ROUNDS)):
            readings["mesh"].append(await _read(mesh))
            readings["bare"].append(await _read(bare))
    ours, peer = (
        _Reading(*(median(values) for values in zip(*readings[kind], strict=True))) for kind in ("mesh", "bare")
    )
    name = "bare grpc.aio"
    return [
        Figure("unary RPC, 50 callers", "1/s", ours[0], name, peer[0], settings=_SETTINGS),
        Figure("unary RPC, server's CPU", "us", ours[1], name, peer[1], settings=_SETTINGS),
        Figure("unary RPC, one caller, p50", "us", ours[2], name, peer[2], settings=_SETTINGS),
    ]


async def _read(place: _Place) -> _Reading:
    metadata = (("authorization", f"Bearer {place.key}"),)
    async with grpc.aio.insecure_channel(place.address) as channel:
        stub: ToolServiceAsyncStub = ToolServiceStub(channel)

        async def call() -> None:
            await stub.ListTools(pb.ListToolsRequest(), metadata=metadata, timeout=_CALL_SECONDS)

        lone = [await _seconds(call) for _ in range(_LONE_CALLS)]
        calls, cpu, began = 0, cpu_seconds([place.pid]), time.perf_counter()

        async def call_on() -> None:
            nonlocal calls
            while time.perf_counter() < began + _ROUND_SECONDS:
                await call()
                calls += 1

        await asyncio.gather(*(call_on() for _ in range(_CALLERS)))
        seconds, cpu = time.perf_counter() - began, cpu_seconds([place.pid]) - cpu
    return _Reading(calls / seconds, cpu / calls * 1e6, median(lone) * 1e6)


async def _seconds(call: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


@asynccontextmanager
async def _running(kind: Kind) -> AsyncGenerator[_Place]:
    command = (sys.executable, "-m", "benchmarks.rpc", kind)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        yield _Place(process.pid, *(await process.stdout.readline()).decode().split())
    finally:
        await process.communicate(b"")  # It ends with its stdin.


async def _serve(kind: Kind, directory: Path) -> None:
    keyring = Keyring(directory / "keys.json", directory / "mesh.key")
    if kind == "mesh":
        server = Server(ServerConfig(address="127.0.0.1:0"), f"unix:{directory}/mesh.sock", keyring)
        server.add("kfm.tool.v1.ToolService", lambda inner: add_ToolServiceServicer_to_server(_Echo(), inner))
        await server.start()
        await server.ready()
        address, stop = server.address, server.stop
    else:
        bare = grpc.aio.server()
        add_ToolServiceServicer_to_server(_Echo(), bare)
        address, stop = f"127.0.0.1:{bare.add_insecure_port('127.0.0.1:0')}", bare.stop
        await bare.start()
    print(address, keyring.create("bench", "bench"), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await stop(0)


def _main(kind: Kind) -> None:
    with tempfile.TemporaryDirectory(prefix="agentshell-rpc-") as directory:
        uvloop.run(_serve(kind, Path(directory)))


if __name__ == "__main__":
    _main("mesh" if sys.argv[1] == "mesh" else "bare")
