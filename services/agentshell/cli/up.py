"""`agentshell up`: runs a process of the mesh until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import FAILED, ending
from agentshell.cli.options import ConfigFile, DataDir

# Repeats those of `topology`, because importing it takes half a second.
_SERVICES = "memory, provider, personality, tool, runtime (or manager and worker apart), gateway"

if TYPE_CHECKING:
    from agentshell.mesh.config import Config
    from agentshell.process import Process


class LogFormat(StrEnum):
    """Format of log lines."""

    CONSOLE = "console"
    JSON = "json"


def up(
    services: Annotated[
        list[str] | None,
        typer.Argument(help=f"Services to run: {_SERVICES}; default: all of them.", show_default=False),
    ] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    database_url: Annotated[str, typer.Option(help="postgresql://...; default: the bundled Postgres.")] = "",
    address: Annotated[str, typer.Option(help="HOST:PORT for clients; port 0 picks a free one.")] = "",
    log_format: Annotated[LogFormat | None, typer.Option(help="Format of log lines.")] = None,
) -> None:
    """Run the mesh, or some of its services. Ctrl-C drains and stops it; a second one ends it at once."""
    gc.disable()  # Imports stay, and scanning them takes a sixth of startup; `Process` enables it again.
    with ending(FAILED):
        config = mesh.load_config(
            config_file,
            data_dir,
            database={"url": database_url},
            server={"address": address},
            telemetry={"log_format": log_format.value if log_format else ""},
        )
        import uvloop

        uvloop.run(_serve(config, services or ()))


async def _serve(config: Config, services: Sequence[str]) -> None:
    from agentshell.process import Process

    began = time.perf_counter()
    stop, process = _stop_signal(), Process(config, services)
    starting, stopping = asyncio.create_task(process.start()), asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return
    await starting
    try:  # Printing fails if nobody reads standard output any more.
        _announce(process, time.perf_counter() - began)
        await stopping
        typer.echo("stopping; interrupt again to stop at once")
    finally:
        await process.stop()
    typer.echo("stopped")


def _stop_signal() -> asyncio.Event:
    """Returns an event that the first SIGINT or SIGTERM sets; the second ends the process at once."""
    stop = asyncio.Event()

    def receive(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)  # Postgres stops too: the kernel signals it.
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, receive, number)
    return stop


def _announce(process: Process, seconds: float) -> None:
    from agentshell.mesh.data_directory import key_file

    if "gateway" in process.names:
        typer.echo(f"gRPC     {process.address}")
        typer.echo(f"API key  {key_file(process.config.data_dir)}")
    typer.echo(f"HTTP     http://{process.http_address}/metrics, /health/live, /health/ready")
    typer.echo(f"ready in {seconds:.1f} s: {', '.join(process.names)}")
