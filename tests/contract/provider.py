"""What the adapter suites share: each adapter, with a real HTTP server that plays its vendor."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf import struct_pb2
from tests.vendors.anthropic_server import AnthropicServer
from tests.vendors.gemini_server import GeminiServer
from tests.vendors.openai_server import OpenAIChatServer, OpenAICompatibleServer, OpenAIServer
from tests.vendors.vendor_server import Request, VendorServer

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.adapters.adapter import Access, Adapter
from agentshell.provider.adapters.anthropic import AnthropicAdapter
from agentshell.provider.adapters.gemini import GeminiAdapter
from agentshell.provider.adapters.local import LocalAdapter
from agentshell.provider.adapters.openai import OpenAIAdapter
from agentshell.provider.adapters.openai_chat import OpenAIChatAdapter
from agentshell.provider.adapters.openai_compatible import OpenAICompatibleAdapter
from agentshell.provider.key import Key
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

KEY = "sk-live-0123456789abcdef"
VARIABLE = "VENDOR_API_KEY"

Text = content_pb2.Text
Part = content_pb2.Part
Message = content_pb2.Message
USER, SYSTEM, ASSISTANT, TOOL = (
    content_pb2.ROLE_USER,
    content_pb2.ROLE_SYSTEM,
    content_pb2.ROLE_ASSISTANT,
    content_pb2.ROLE_TOOL,
)


@dataclass(frozen=True, slots=True)
class Vendor:
    """A row of the suites: an adapter, the server that plays its vendor, and the path of its base URL."""

    adapter: Callable[[Access], Adapter]
    server: Callable[[], VendorServer]
    base_path: str = ""
    model: str = ""


VENDORS: Mapping[str, Vendor] = {
    "openai": Vendor(OpenAIAdapter, OpenAIServer, "/v1"),
    "openai_chat": Vendor(OpenAIChatAdapter, OpenAIChatServer, "/v1"),
    "openai_compatible": Vendor(OpenAICompatibleAdapter, OpenAICompatibleServer, "/v1", "llama-4"),
    "anthropic": Vendor(AnthropicAdapter, AnthropicServer),
    "gemini": Vendor(GeminiAdapter, GeminiServer),
}


@dataclass
class Subject:
    """An adapter under test, and the vendor behind it (None: it needs none)."""

    name: str
    adapter: Adapter
    server: VendorServer | None = None
    environment: dict[str, str] = field(default_factory=lambda: {VARIABLE: KEY})

    @property
    def vendor(self) -> VendorServer:
        assert self.server is not None
        return self.server

    async def stream(self, generation: pb.Generation) -> list[pb.GenerationDelta | pb.GenerateResponse]:
        """Returns every item of the streamed answer."""
        model = generation.model or self.adapter.default_model
        seen: list[pb.GenerationDelta | pb.GenerateResponse] = []
        async with aclosing(self.adapter.stream(generation, model)) as items:
            async for item in items:
                seen += item if isinstance(item, list) else [item]
        return seen

    async def generate(self, generation: pb.Generation) -> pb.GenerateResponse:
        """Returns the whole answer."""
        *deltas, answer = await self.stream(generation)
        assert all(isinstance(delta, pb.GenerationDelta) for delta in deltas)
        assert isinstance(answer, pb.GenerateResponse)
        return answer

    async def count(self, generation: pb.Generation) -> pb.CountTokensResponse:
        """Returns how many input tokens the request has."""
        return await self.adapter.count_tokens(generation, self.adapter.default_model)


@asynccontextmanager
async def subject_of(name: str) -> AsyncGenerator[Subject]:
    """Yields an adapter and its vendor."""
    if name == "local":
        yield Subject(name, LocalAdapter(Access(name, Key(name))))
        return
    vendor = VENDORS[name]
    async with vendor.server() as server:
        environment = {VARIABLE: KEY}
        key = Key(name, VARIABLE, environment=environment)
        adapter = vendor.adapter(Access(name, key, vendor.model, server.url + vendor.base_path))
        yield Subject(name, adapter, server, environment)
        await adapter.close()


async def refusal(answer: Awaitable[object]) -> AgentShellError:
    """Returns the error of a call that must fail."""
    with pytest.raises(AgentShellError) as caught:
        await answer
    return caught.value


def said(role: content_pb2.Role.ValueType, *parts: Part | str) -> Message:
    """Returns a message."""
    return Message(role=role, parts=[Part(text=Text(text=p)) if isinstance(p, str) else p for p in parts])


PASSAGE = content_pb2.Passage(
    record_id="r1",
    source_uri="README.md",
    title="Run > Stop",
    text="Press ctrl-C to stop the mesh. It drains for ten seconds, and its Postgres ends with it.",
)


def question(text: str = "How do I stop the mesh?", **fields: Any) -> pb.Generation:
    """Returns a question with a passage to answer it from."""
    return pb.Generation(messages=[said(USER, text, Part(passage=PASSAGE))], **fields)


def struct(value: Mapping[str, Any]) -> struct_pb2.Struct:
    """Returns a value as Protobuf's."""
    made = struct_pb2.Struct()
    made.update(value)
    return made


def text_of(response: pb.GenerateResponse) -> str:
    """Returns the text of an answer."""
    return "".join(part.text.text for part in response.message.parts)


IMAGE = Part(image=content_pb2.Image(media_type="image/png", data=b"png"))
LINK = Part(image=content_pb2.Image(media_type="image/png", uri="https://example.org/a.png"))
TOOL_CALL = Part(tool_call=content_pb2.ToolCall(call_id="c1", name="search", arguments=struct({"n": 3})))


def asked() -> Request:
    """Returns a request for calling the vendor server's `events` directly."""
    return Request("/", {}, {"model": "m", "stream": True, "stream_options": {"include_usage": True}})
