"""What the step suites share: the real services that steps call, with a model vendor's HTTP server behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import grpc.aio
from tests.contract.serving import member
from tests.vendors.openai_server import OpenAIChatServer

from agentshell.db.database import Database
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.mesh import call, channel
from agentshell.mesh.config import MemoryConfig, PersonalityConfig, ProviderConfig, ToolConfig
from agentshell.personality.service import PersonalityService
from agentshell.provider.service import ProviderService
from agentshell.runtime.steps.sources import Sources
from agentshell.runtime.steps.step import StepRunner
from agentshell.tool.builtin.table import TOOLS
from agentshell.tool.egress import Egress
from agentshell.tool.mcp.servers import Servers
from agentshell.tool.results import Results
from agentshell.tool.sandbox.sandbox import Sandbox
from agentshell.tool.service import ToolService
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.memory.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server
from kfm.personality.v1.personality_service_pb2_grpc import add_PersonalityServiceServicer_to_server
from kfm.provider.v1.provider_service_pb2_grpc import add_ProviderServiceServicer_to_server
from kfm.tool.v1.tool_service_pb2_grpc import add_ToolServiceServicer_to_server
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import Step, StepResult

BOUND_SECONDS = 20.0
ANN = call.Principal("acme", "ann")
_MANIFEST = """\
id: {id}
version: 1.0.0
name: N
description: D
provider_settings: {{default_provider: {provider}}}
system_prompt: {{template_file: prompt.md}}
tools: {{enabled: {enabled}, exposed_tools: [{tools}]}}
"""


class Services:
    """The services, through a channel of the mesh, and the model vendor behind them."""

    def __init__(self, inside: grpc.aio.Channel, vendor: OpenAIChatServer) -> None:
        self.inside = inside
        self.vendor = vendor
        self.sources = Sources(inside, inside, inside, max_history_messages=10)


@asynccontextmanager
async def serve(database: Database, packs: Path) -> AsyncGenerator[Services]:
    """Serves memory, personality, provider and tool.

    The packs are `tooled`; `plain`, which knows about onions; and `local`, which uses the provider of that name.
    """
    _write(packs, "tooled", "openai", list(TOOLS))
    _write(packs, "plain", "openai", [])
    _write(packs, "local", "local", ["clock"])
    (packs / "plain" / "knowledge").mkdir()
    (packs / "plain" / "knowledge" / "soup.md").write_text("# Soup\n\nSimmer the onions slowly.")
    with (packs / "plain" / "manifest.yaml").open("a") as manifest:
        manifest.write("knowledge: {sources: [{type: directory, path: knowledge}]}\n")
    async with AsyncExitStack() as stack:
        vendor = await stack.enter_async_context(OpenAIChatServer())
        served = await stack.enter_async_context(member())
        inside = await stack.enter_async_context(channel.connect(served.mesh_address, served.keyring))
        openai = {"adapter": "openai_chat", "base_url": f"{vendor.url}/v1"}
        config = ProviderConfig.model_validate({"vendors": {"openai": openai}, "max_attempts": 1})
        opening = ProviderService.open(config, {"OPENAI_API_KEY": "sk-x"}, database)
        provider = await stack.enter_async_context(opening)
        memory = MemoryService(MemoryConfig(), database, await PgvectorStore.open(database))
        personality = PersonalityService(PersonalityConfig(directories=(packs,), default="plain"), inside)
        egress = Egress(ToolConfig(), {})
        tool = ToolService(Results(database), inside, inside, Sandbox.of(egress), egress, Servers(egress, {}))
        add = served.server.add
        add("kfm.memory.v1.MemoryService", partial(add_MemoryServiceServicer_to_server, memory))
        add("kfm.personality.v1.PersonalityService", partial(add_PersonalityServiceServicer_to_server, personality))
        add("kfm.provider.v1.ProviderService", partial(add_ProviderServiceServicer_to_server, provider))
        add("kfm.tool.v1.ToolService", partial(add_ToolServiceServicer_to_server, tool))
        await tool.open()
        async with await served.start():
            await personality.start()
            await personality.knowledge_ready()
            yield Services(inside, vendor)
            await personality.stop()


async def run(
    runner: StepRunner, request: StepRequest, said: list[str] | None = None, seconds: float = BOUND_SECONDS
) -> StepResult:
    """Runs an attempt as a worker does; the texts it publishes are added to `said`."""

    async def emit(texts: Sequence[str]) -> None:
        if said is not None:
            said.extend(texts)

    with call.scope(ANN, seconds):
        return await runner.run(request, emit)


def user(text: str) -> Message:
    """Returns a user's message."""
    return Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])


def request_of(step: Step, personality_id: str = "", text: str = "What is 2 + 2?") -> StepRequest:
    """Returns a worker's request for a step of turn `T`."""
    request = StepRequest(turn_id="T", step=step, attempt=1, input=user(text), personality_id=personality_id)
    request.header.session_id = "s"
    return request


def _write(packs: Path, personality_id: str, provider: str, tools: Sequence[str]) -> None:
    folder = packs / personality_id
    folder.mkdir()
    (folder / "prompt.md").write_text("Help.")
    enabled = str(bool(tools)).lower()
    manifest = _MANIFEST.format(id=personality_id, provider=provider, enabled=enabled, tools=", ".join(tools))
    (folder / "manifest.yaml").write_text(manifest)
