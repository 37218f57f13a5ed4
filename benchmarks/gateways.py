"""The gateways that are measured over one upstream, each in one process: ours, our peers' and a bare one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import uuid
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc.aio

from agentshell.mesh.data_directory import key_file
from benchmarks.bench import Bench
from benchmarks.http_client import HttpClient
from benchmarks.mesh import UP, Mesh
from benchmarks.peer import Peer
from benchmarks.peers.upstream import MODEL, WORD, prompt
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.provider.v1 import provider_service_pb2 as pb
from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceStub

if TYPE_CHECKING:
    from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceAsyncStub

_PROVIDER = "openai"
_KEY = "sk-bench"
_CALL_SECONDS = 60.0
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.25
# Makes ours count each call. Nobody spends that much here, so none is refused.
_BUDGETS = '[{ per = "tenant", period = "month", cost_usd = 1000000000.0 }]'
_LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: {url}
      api_key: none
      input_cost_per_token: 0.000002
      output_cost_per_token: 0.000008
general_settings:
  master_key: {key}
"""

Call = Callable[[str, bool], AsyncGenerator[int]]
"""Sends a prompt, streamed or not, and yields the number of words that arrived, as they arrive."""


class Gateway(NamedTuple):
    """A running gateway, and its process."""

    name: str
    pid: int
    call: Call


class Contender(NamedTuple):
    """A gateway that can run here."""

    name: str
    open: Callable[[], AbstractAsyncContextManager[Gateway]]


def contenders(bench: Bench, url: str) -> list[Contender]:
    """Returns all that can run here, over the upstream at `url`; ours first."""
    found = [
        Contender("ours", partial(ours, bench.directory / "provider", url)),
        Contender("bare", partial(_bare, url)),
    ]
    programs = {"LiteLLM": ("AGENTSHELL_BENCH_LITELLM", _litellm), "Portkey": ("AGENTSHELL_BENCH_PORTKEY", _portkey)}
    for name, (variable, run) in programs.items():
        if program := os.environ.get(variable):
            found.append(Contender(name, partial(run, program, bench.directory, url)))
        else:
            bench.skip(f"models through {name}", f"{variable} does not name its program")
    return found


@asynccontextmanager
async def ours(
    data_dir: Path, url: str, *, identified: bool = False, command: Sequence[str] = UP
) -> AsyncGenerator[Gateway]:
    """Runs the provider's service alone, on a Postgres of its own, with a budget for everybody.

    `identified`: each call has a request_id, and its answer is kept.
    """
    address, vendor = f"127.0.0.1:{_free_port()}", f"AGENTSHELL_PROVIDER__VENDORS__{_PROVIDER.upper()}__"
    environment = {
        "AGENTSHELL_SERVER__ADDRESS": address,
        "AGENTSHELL_PROVIDER__BUDGETS": _BUDGETS,
        f"{vendor}ADAPTER": "openai_chat",  # The API that the others use.
        f"{vendor}BASE_URL": url,
        "OPENAI_API_KEY": _KEY,
    }
    async with Mesh.run(data_dir, layout=(("provider",),), command=command, environment=environment) as mesh:
        key = key_file(data_dir).read_text().strip()
        async with grpc.aio.insecure_channel(address) as channel:
            yield Gateway("ours", mesh.pid, partial(_call_grpc, ProviderServiceStub(channel), key, identified))


def upstream(peer: Peer) -> Gateway:
    """Returns the upstream itself, with no gateway in front of it."""
    return Gateway("upstream", peer.pid, partial(_call_http, HttpClient(peer.word, {})))


@asynccontextmanager
async def _bare(url: str) -> AsyncGenerator[Gateway]:
    async with Peer.run("bare_gateway", url) as peer, grpc.aio.insecure_channel(peer.word) as channel:
        yield Gateway("bare", peer.pid, partial(_call_grpc, ProviderServiceStub(channel), "", False))


def _litellm(program: str, directory: Path, url: str) -> AbstractAsyncContextManager[Gateway]:
    port, file = _free_port(), directory / "litellm.yaml"
    file.write_text(_LITELLM.format(model=MODEL, url=url, key=_KEY))
    arguments = ("--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    environment = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    client = HttpClient(f"http://127.0.0.1:{port}/v1", {"Authorization": f"Bearer {_KEY}"})
    return _running("LiteLLM", (program, *arguments, "--telemetry", "False"), environment, client)


def _portkey(program: str, _directory: Path, url: str) -> AbstractAsyncContextManager[Gateway]:
    port = _free_port()
    headers = {"Authorization": f"Bearer {_KEY}", "x-portkey-provider": "openai", "x-portkey-custom-host": url}
    client = HttpClient(f"http://127.0.0.1:{port}/v1", headers)
    return _running("Portkey", ("node", program, "--headless", f"--port={port}"), {"NODE_ENV": "production"}, client)


@asynccontextmanager
async def _running(
    name: str, command: Sequence[str], environment: Mapping[str, str], client: HttpClient
) -> AsyncGenerator[Gateway]:
    variables = {**os.environ, **environment}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, env=variables
    )
    try:
        call = partial(_call_http, client)
        async with asyncio.timeout(_START_SECONDS):
            while not await _answers(call):
                if process.returncode is not None:
                    raise RuntimeError(f"{name} ended with status {process.returncode}; run its program by hand")
                await asyncio.sleep(_LOOK_SECONDS)
        yield Gateway(name, process.pid, call)
    finally:
        client.close()
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _answers(call: Call) -> bool:
    try:
        return sum([words async for words in call(prompt(1), False)]) == 1
    except (OSError, RuntimeError, EOFError):
        return False


async def _call_grpc(
    stub: ProviderServiceAsyncStub, key: str, identified: bool, text: str, streamed: bool
) -> AsyncGenerator[int]:
    message = Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])
    generation = pb.Generation(provider=_PROVIDER, model=MODEL, messages=[message])
    metadata, request_id = (("authorization", f"Bearer {key}"),), str(uuid.uuid4()) if identified else ""
    if streamed:
        request = pb.StreamGenerateRequest(generation=generation, request_id=request_id)
        stream = stub.StreamGenerate(request, metadata=metadata, timeout=_CALL_SECONDS)
        async for response in stream:
            yield sum(delta.text.count(WORD) for delta in response.deltas)
    else:
        answer = await stub.Generate(
            pb.GenerateRequest(generation=generation, request_id=request_id), metadata=metadata, timeout=_CALL_SECONDS
        )
        yield answer.message.parts[0].text.text.count(WORD)


async def _call_http(client: HttpClient, text: str, streamed: bool) -> AsyncGenerator[int]:
    message = {"role": "user", "content": text}
    options = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    body = json.dumps({"model": MODEL, "messages": [message], **options}).encode()
    async with aclosing(client.post("/chat/completions", body)) as answer:
        async for data in answer:
            yield data.count(WORD.encode())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
