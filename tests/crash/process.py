"""Starts real processes of the mesh, with a faulty log, that can be killed at any of their boundaries.

It loads everything once and forks, so that a thousand restarts take minutes. It reads orders from its standard input,
one JSON object a line; when the input ends, it kills the processes that it started.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import httpx2 as httpx2  # Loaded once here rather than by each process.
import uvloop as uvloop
from tests.crash import clock
from tests.crash.faulty_log import FaultyLog
from tests.crash.page import Page

from agentshell import process
from agentshell.cli.up import up
from agentshell.gateway.turn_index import TurnIndex
from agentshell.log.log import Log
from agentshell.runtime.conclusion import Conclusion
from agentshell.runtime.parking import Parking
from agentshell.runtime.steps.agent import AgentRunner
from agentshell.runtime.steps.http import HttpRunner
from agentshell.runtime.steps.memory import MemoryRunner
from agentshell.runtime.steps.model import ModelRunner
from agentshell.runtime.steps.noop import NoopRunner
from agentshell.runtime.steps.tool import ToolRunner
from agentshell.topology import SERVICES
from agentshell.topology.parts import Parts

_WATCHED: tuple[tuple[type[Any], str, str], ...] = (
    (TurnIndex, "claim", "claim a turn in the index"),
    (TurnIndex, "save", "save turns in the index"),
    (Parking, "save", "park a turn"),
    (Parking, "load", "load a parked turn"),
    (Parking, "forget", "forget a parked turn"),
    (Conclusion, "run", "conclude a turn"),
    (ModelRunner, "run", "run a model step"),
    (MemoryRunner, "run", "run a plan's memory step"),
    (ToolRunner, "run", "run a tool step"),
    (HttpRunner, "run", "run an http step"),
    (AgentRunner, "run", "run an agent step"),
    (NoopRunner, "run", "run a noop step"),
)


def main() -> None:
    """Forks a process for each order until there are no more."""
    for name in SERVICES:
        importlib.import_module(f"agentshell.topology.{name}")
    children: set[int] = set()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        children -= _ended(children)
        if pid := os.fork():
            children.add(pid)
        else:
            _run(json.loads(line))
    # Safe to kill: the pid of a child that has not been waited for is never reused.
    for pid in children - _ended(children):
        os.kill(pid, signal.SIGKILL)


def _ended(children: set[int]) -> set[int]:
    """Reaps and returns the children that have ended; their pids may be reused from now on."""
    return {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}


def _run(order: dict[str, Any]) -> None:
    """Runs as the ordered process, and never returns."""
    status = 1
    try:
        os.environ.clear()
        os.environ.update(order["environment"])
        with socket.socket(socket.AF_UNIX) as output:
            output.connect(order["output"])
            os.dup2(output.fileno(), sys.stdout.fileno())
        sys.stdin.close()
        print(order["name"], os.getpid(), flush=True)
        _arm(Page(Path(order["page"])), order["seed"])
        up(order["services"], None, Path(order["data_dir"]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _arm(page: Page, seed: int) -> None:
    for owner, name, point in _WATCHED:
        setattr(owner, name, page.around(point, getattr(owner, name)))

    class FaultyParts(Parts):
        async def _open_log(self) -> Log:
            return FaultyLog(await super()._open_log(), page, seed)

    process.Parts = FaultyParts
    clock.install(lambda: page.clock_seconds)


if __name__ == "__main__":
    main()
