"""Many packs in one process: how long they take to load, how much memory they hold, and what one of them then costs.

`python -m benchmarks.packs DIRECTORY` is that process: it serves the packs of a directory, and prints its figures.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

from agentshell.mesh import call, channel, telemetry
from agentshell.mesh.config import PersonalityConfig, ServerConfig, TelemetryConfig
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.server import Server
from agentshell.personality.service import PersonalityService
from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal, median, percentile
from benchmarks.processes import memory_bytes
from kfm.memory.v1.memory_service_pb2 import IngestRequest, IngestResponse
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.personality.v1.personality_service_pb2_grpc import (
    PersonalityServiceStub,
    add_PersonalityServiceServicer_to_server,
)

if TYPE_CHECKING:
    from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceAsyncStub

_PACKS = 1500
_RELOADS = 20
_LOOKUPS = 2000
_SECONDS = 120.0
_MANIFEST = """\
id: agent-{number}
version: 1.0.0
name: Agent {number}
description: One of many, which helps with one thing and says so at some length, for people who look for it.
author: The benchmark
category: group-{group}
tags: [generated, group-{group}]
capabilities: [answer, count]
provider_settings: {{default_provider: local}}
system_prompt:
  template_file: prompts/system.md
  variables:
    - {{name: product, default: Thing {number}, description: What it is about.}}
    - {{name: most_words, default: "250", description: How long an answer may be.}}
tools:
  enabled: true
  exposed_tools: [clock, weigh]
knowledge:
  sources: [{{type: directory, path: knowledge}}]
limits: {{max_turn_seconds: 30, max_steps: 10}}
"""
_RULE = "Answer from the passages that you are given, and cite each of them by its document.\n"
_PROMPT = "You are the guide to {{ product }}.\n" + _RULE * 20 + "At most {{ most_words }} words.\n"
_TOOL = '''\
from typing import Annotated


def weigh(words: Annotated[list[str], "What to weigh."], most: int = 3) -> dict[str, int]:
    """Weighs words."""
    return {word: len(word) for word in words[:most]}
'''
_DOCUMENT = "# Document {document} of agent {number}\n\n" + "What it says is of no use but to a benchmark.\n" * 80
_SETTINGS = (
    f"{_PACKS} packs, each with a manifest of 22 lines, a prompt of 1.8 KB with 2 variables, a tool and 2 documents of "
    "3.7 KB; files in the page cache; a process of its own"
)


async def measure(bench: Bench) -> list[Figure]:
    """Writes the packs, and has a process serve them."""
    directory = bench.directory / "packs"
    await asyncio.to_thread(_make, directory, bench.rounds(_PACKS))
    command = (sys.executable, "-m", "benchmarks.packs", str(directory))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    async with asyncio.timeout(_SECONDS):
        out, _ = await process.communicate()
    found: dict[str, float] = json.loads(out)
    name, reloaded = f"{bench.rounds(_PACKS)} packs", "read, checked, and answered with, once the change is noticed"
    return [
        Figure(f"{name}, load", "s", found["load_seconds"], goal=Goal("ours", "<=", 2), settings=_SETTINGS),
        Figure(f"{name}, memory", "MiB", found["bytes"] / 2**20, goal=Goal("ours", "<=", 300), settings="PSS"),
        _milliseconds(f"{name}, reload one, p50", found["reload_seconds"], 100, reloaded),
        Figure(f"{name}, reload all, none changed", "s", found["reload_all_seconds"]),
        _milliseconds(f"{name}, lookup, p50", found["lookup_seconds"], 1, "PersonalityService.Get, without gRPC"),
        _milliseconds(f"{name}, lookup, p99", found["lookup_p99_seconds"], 1, "the same"),
        _milliseconds(f"{name}, lookup by gRPC, p50", found["call_seconds"], None, "the same, called"),
    ]


def _milliseconds(name: str, seconds: float, most: float | None, settings: str) -> Figure:
    return Figure(name, "ms", seconds * 1e3, goal=Goal("ours", "<=", most) if most else None, settings=settings)


def _make(directory: Path, count: int) -> None:
    for number in range(count):
        pack = directory / f"agent-{number}"
        files = {
            "manifest.yaml": _MANIFEST.format(number=number, group=number % 10),
            "prompts/system.md": _PROMPT,
            "tools/weigh.py": _TOOL,
            **{f"knowledge/{n}.md": _DOCUMENT.format(number=number, document=n) for n in range(2)},
        }
        for path, text in files.items():
            (pack / path).parent.mkdir(parents=True, exist_ok=True)
            (pack / path).write_text(text)


async def _main(directory: Path) -> None:
    gc.disable()  # As `agentshell up` does until it is ready.
    telemetry.setup(TelemetryConfig(log_level="warning"), "bench")
    names = await asyncio.to_thread(lambda: sorted(path.name for path in directory.iterdir()))
    async with _serving(directory) as (service, stub):
        began = time.perf_counter()
        await service.start()
        found = {"load_seconds": time.perf_counter() - began}
        gc.enable()
        await service.knowledge_ready()
        gc.collect()
        found["bytes"] = memory_bytes([os.getpid()])
        lookups = [await _lookup_seconds(service, names[n % len(names)]) for n in range(_LOOKUPS)]
        found |= {"lookup_seconds": median(lookups), "lookup_p99_seconds": percentile(lookups, 99)}
        found["call_seconds"] = median([await _call_seconds(stub, names[n % len(names)]) for n in range(_LOOKUPS // 4)])
        reloads = [await _reload_seconds(service, directory / names[n % len(names)], n) for n in range(_RELOADS)]
        found["reload_seconds"] = median(reloads)
        began = time.perf_counter()
        with call.scope(call.OPERATOR, _SECONDS):
            await stub.Reload(pb.ReloadRequest())
        found["reload_all_seconds"] = time.perf_counter() - began
        await service.stop()
    sys.stdout.write(json.dumps(found))


@asynccontextmanager
async def _serving(directory: Path) -> AsyncGenerator[tuple[PersonalityService, PersonalityServiceAsyncStub]]:
    """Serves the packs, with a Memory service that accepts their knowledge and discards it."""
    with tempfile.TemporaryDirectory(prefix="as-") as name:
        keyring = Keyring(Path(name, "keys.json"), Path(name, "mesh.key"))
        mesh_address = f"unix:{name}/m.sock"
        server = Server(ServerConfig(address="127.0.0.1:0"), mesh_address, keyring)
        async with channel.connect(mesh_address, keyring) as inside:
            service = PersonalityService(PersonalityConfig(directories=(directory,), default=""), inside)
            server.add("kfm.memory.v1.MemoryService", _register)
            server.add(
                "kfm.personality.v1.PersonalityService",
                lambda registered: add_PersonalityServiceServicer_to_server(service, registered),
            )
            await server.start()
            await server.ready()
            with call.scope(call.Principal("bench", "bench"), _SECONDS):
                yield service, PersonalityServiceStub(inside)
            await server.stop(0)


def _register(server: grpc.aio.Server) -> None:
    async def ingest(requests: AsyncIterator[IngestRequest], _context: object) -> IngestResponse:
        async for _ in requests:
            pass
        return IngestResponse()

    handler = grpc.stream_unary_rpc_method_handler(
        cast("Any", ingest), IngestRequest.FromString, IngestResponse.SerializeToString
    )
    server.add_registered_method_handlers("kfm.memory.v1.MemoryService", {"Ingest": handler})


async def _lookup_seconds(service: PersonalityService, personality_id: str) -> float:
    context: Any = None  # The handler does not use it.
    request = pb.GetRequest(personality_id=personality_id)
    began = time.perf_counter()
    await service.Get(request, context)
    return time.perf_counter() - began


async def _call_seconds(stub: PersonalityServiceAsyncStub, personality_id: str) -> float:
    began = time.perf_counter()
    await stub.Get(pb.GetRequest(personality_id=personality_id))
    return time.perf_counter() - began


async def _reload_seconds(service: PersonalityService, folder: Path, number: int) -> float:
    """Returns how long it takes to read a pack that has changed, until it answers."""
    await asyncio.to_thread((folder / "prompts" / "system.md").write_text, f"Version {number} of {{{{ product }}}}.")
    began = time.perf_counter()
    await service.reload([folder])
    return time.perf_counter() - began


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
