"""Restate running the same steps: its server, and a process that serves the steps and runs one load per line of stdin.

    python -m benchmarks.peers.restate_steps RESTATE_SERVER DIRECTORY <<< "50 5"

The server is at its defaults except for its addresses: one node, 24 partitions, a replicated log of one copy, fsync on.
A handler's steps are `ctx.run_typed` of an async function that does nothing; callers invoke it over HTTP and wait.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import socket
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Any, NamedTuple

import uvloop

from benchmarks.peers.serving import serve

# Without types here: only the `bench` extra has them.
restate: Any = importlib.import_module("restate")
hypercorn: Any = importlib.import_module("hypercorn.asyncio")
configuration: Any = importlib.import_module("hypercorn.config")

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LOOK_SECONDS = 0.1


class Ports(NamedTuple):
    """Which port each part listens on; free ones of this machine."""

    node: int
    admin: int
    ingress: int
    service: int


async def nothing() -> None:
    """A step."""


async def chain(context: Any, steps: int) -> None:
    """Steps, one after another."""
    for _ in range(steps):
        await context.run_typed("nothing", nothing)


async def burst(ingress: int, words: list[str]) -> tuple[float]:
    """Returns the seconds that `INVOCATIONS STEPS` takes, with all invocations at once."""
    invocations, steps = map(int, words)
    began = time.perf_counter()
    taken = await asyncio.gather(*(post(ingress, "/bench/chain", steps) for _ in range(invocations)))
    if not all(taken):
        raise RuntimeError("Restate failed an invocation; run its server by hand to see why")
    return (time.perf_counter() - began,)


async def post(port: int, path: str, body: object) -> bool:
    """Posts JSON to a port of this machine; returns whether it was accepted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        data = json.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode())
        return (await reader.read()).startswith(b"HTTP/1.1 2")


@asynccontextmanager
async def server(program: str, directory: str, ports: Ports) -> AsyncGenerator[None]:
    """Runs Restate's server."""
    environment = {
        **os.environ,
        "RESTATE_BASE_DIR": directory,
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{ports.node}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{ports.admin}",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ports.ingress}",
        "RESTATE_DISABLE_TELEMETRY": "true",
    }
    arguments = (program, "--no-logo", "--node-name", "bench")
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, env=environment
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def steps(port: int) -> AsyncGenerator[None]:
    """Serves the steps."""
    service, config, stop = restate.Service("bench"), configuration.Config(), asyncio.Event()
    service.handler()(chain)
    config.bind, config.loglevel = [f"127.0.0.1:{port}"], "ERROR"
    task = asyncio.create_task(hypercorn.serve(restate.app([service]), config, shutdown_trigger=stop.wait))
    try:
        yield
    finally:
        stop.set()
        await task


async def until_registered(ports: Ports) -> None:
    """Waits until the server knows where the steps are, and runs them."""
    async with asyncio.timeout(_START_SECONDS):
        for port, path, body in (
            (ports.admin, "/deployments", {"uri": f"http://127.0.0.1:{ports.service}", "force": True}),
            (ports.ingress, "/bench/chain", 1),
        ):
            while not await _taken(port, path, body):  # noqa: ASYNC110 - another process's
                await asyncio.sleep(_LOOK_SECONDS)


async def _taken(port: int, path: str, body: object) -> bool:
    try:
        return await post(port, path, body)
    except OSError:
        return False


def free_ports() -> Ports:
    """Returns ports on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in Ports._fields]
    ports = Ports(*(each.getsockname()[1] for each in sockets))
    for each in sockets:
        each.close()
    return ports


async def run(program: str, directory: str) -> None:
    """Answers each line `INVOCATIONS STEPS` with the seconds it took."""
    ports = free_ports()
    async with server(program, directory, ports), steps(ports.service):
        await until_registered(ports)
        await serve(partial(burst, ports.ingress))


if __name__ == "__main__":
    uvloop.run(run(*sys.argv[1:]))
