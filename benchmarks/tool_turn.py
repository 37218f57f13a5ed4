"""The mocked turn: the model asks for a tool, the tool answers, the model answers. Both sides call the same model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from benchmarks import vendor
from benchmarks.bench import Bench
from benchmarks.figure import Figure, Goal, median
from benchmarks.floor import DURABLE, Floor
from benchmarks.mesh import Mesh, message
from benchmarks.peer import Peer
from benchmarks.peers.model import ANSWER
from kfm.turn.v1.turn_service_pb2 import RunTurnRequest, TurnSpec
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client

_ROUNDS = 5
_TURNS = 100
_CALLERS = 20
_SETTLE_SECONDS = 0.3
_CALL_SECONDS = 60.0
_TOOL = "calculator"
_ARGUMENTS = '{"expression": "6 * 7"}'
_COMMITS = 4  # The request, and each of three steps with the decision that follows: none can be spared.
_KINDS = {"http": "LangGraph", "inner": "LangGraph, model in its process", "bare": "2 calls of the model, no engine"}
_FAIR = f"{DURABLE}; LangGraph: AsyncPostgresSaver, durability=sync; both call the same model over HTTP, streamed"
_GOALS = {"http": Goal("ratio", "<=", 0.5)}
_SETTINGS = {
    "http": _FAIR,
    "inner": f"{DURABLE}; unfair to ours, which calls its model over HTTP",
    "bare": "nothing is durable: OpenAI's SDK and the mocked model alone",
}
_PACK = """\
id: bench
version: 1.0.0
name: Bench
description: Has one tool.
system_prompt:
  template_file: system.md
tools:
  enabled: true
  exposed_tools: [calculator]
"""


async def measure(bench: Bench) -> list[Figure]:
    """Runs turns one after another and several at once, alternating between ours and LangGraph's."""
    peer_url, floor_url = await bench.database("tool_turn_peer"), await bench.database("tool_turn_floor")
    ours, peers = list[float](), {kind: list[float]() for kind in _KINDS}
    rates: dict[str, list[float]] = {"ours": [], "http": []}
    appends: list[float] = []
    async with (
        vendor.run() as model,
        _mesh(bench, model) as client,
        Peer.run("langgraph_turn", peer_url, model.word) as peer,
        Floor.open(floor_url, bench.directory) as floor,
    ):
        try:
            await _turns(client, 2 * _CALLERS, _CALLERS)
        except (grpc.aio.AioRpcError, RuntimeError) as error:
            why = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
            bench.skip("the turn of model, tool, model", f"the mesh does not run it: {why}")
            return []
        for kind in _KINDS:
            await peer.ask(kind, 2 * _CALLERS, _CALLERS)
        for _ in range(bench.rounds(_ROUNDS)):
            ours += (await _turns(client, _TURNS, 1))[1:]
            await asyncio.sleep(_SETTLE_SECONDS)
            for kind, seconds in peers.items():
                seconds += (await peer.ask(kind, _TURNS, 1))[1:]
            rates["ours"].append(_TURNS / (await _turns(client, _TURNS, _CALLERS))[0])
            await asyncio.sleep(_SETTLE_SECONDS)
            rates["http"].append(_TURNS / (await peer.ask("http", _TURNS, _CALLERS))[0])
            appends.append(await floor.append_milliseconds())
    return _figures(ours, peers, rates, median(appends))


def _figures(
    ours: list[float], peers: dict[str, list[float]], rates: dict[str, list[float]], append: float
) -> list[Figure]:
    name, own = "turn of model, tool, model", median(ours) * 1e3
    figures = [
        Figure(f"{name}, p50", "ms", own, _KINDS[kind], median(seconds) * 1e3, _GOALS.get(kind), _SETTINGS[kind])
        for kind, seconds in peers.items()
    ]
    rate, peer_rate = median(rates["ours"]), median(rates["http"])
    return [
        *figures,
        Figure(f"{name}, p50", "ms", own, f"{_COMMITS} appends", _COMMITS * append, settings=DURABLE),
        Figure(f"{name}, {_CALLERS} callers", "1/s", rate, _KINDS["http"], peer_rate, settings=_FAIR),
    ]


@asynccontextmanager
async def _mesh(bench: Bench, model: Peer) -> AsyncGenerator[Client]:
    settings, url = environment(bench.directory / "packs", model), await bench.database("tool_turn")
    async with Mesh.run(bench.directory / "tool-turn", url, environment=settings) as mesh, mesh.client() as client:
        yield client


def environment(packs: Path, model: Peer) -> Mapping[str, str]:
    """Returns the variables that make a mesh call the model and answer with the pack, which it writes to `packs`."""
    directory = packs / "bench"
    directory.mkdir(parents=True)
    (directory / "manifest.yaml").write_text(_PACK)
    (directory / "system.md").write_text("Answer by the tool.\n")
    own = {"AGENTSHELL_PERSONALITY__DIRECTORIES": f'["{packs}"]', "AGENTSHELL_PERSONALITY__DEFAULT": "bench"}
    return {**vendor.environment(model), **own}


async def _turns(client: Client, turns: int, callers: int) -> list[float]:
    """Returns the seconds of all turns together, then of each; each has its own session and is read to its end."""

    async def call() -> list[float]:
        seconds: list[float] = []
        for _ in range(turns // callers):
            began = time.perf_counter()
            await run(client)
            seconds.append(time.perf_counter() - began)
        return seconds

    began = time.perf_counter()
    found = await asyncio.gather(*(call() for _ in range(callers)))
    return [time.perf_counter() - began, *(seconds for each in found for seconds in each)]


async def run(client: Client) -> None:
    """Runs a turn in a new session and reads it to its end. Raises RuntimeError if it is not as it should be."""
    spec = TurnSpec(input=message(_ARGUMENTS), model=vendor.tool(_TOOL))
    text, tools, completed = "", 0, False
    async for response in TurnServiceStub(client.channel).RunTurn(RunTurnRequest(turn=spec), timeout=_CALL_SECONDS):
        for update in response.updates:
            text += "".join(update.delta.texts)
            result = update.event.step_succeeded.result
            tools += any(part.HasField("tool_result") for part in result.output.parts)
            completed = update.event.HasField("turn_completed")
    if not completed or text != ANSWER or not tools:
        raise RuntimeError(f"a turn ended with {tools} results of tools and the text {text!r}, completed: {completed}")
