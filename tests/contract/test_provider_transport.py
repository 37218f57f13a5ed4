"""How vendors are reached, and how long they may take."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from tests.contract.provider import KEY, VARIABLE, VENDORS, Subject, asked, question, text_of
from tests.vendors.anthropic_server import AnthropicServer

from agentshell.provider.adapters.adapter import Access
from agentshell.provider.adapters.anthropic import AnthropicAdapter
from agentshell.provider.key import Key


@asynccontextmanager
async def _anthropic(url: str) -> AsyncGenerator[Subject]:
    environment = {VARIABLE: KEY}
    adapter = AnthropicAdapter(Access("anthropic", Key("anthropic", VARIABLE, environment=environment), base_url=url))
    yield Subject("anthropic", adapter, None, environment)
    await adapter.close()


@asynccontextmanager
async def _bytes(answer: bytes) -> AsyncGenerator[str]:
    """Yields the URL of a server that answers any request with these bytes, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_an_answer_may_be_compressed() -> None:
    body = gzip.compress(json.dumps({"input_tokens": 7}).encode())
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}"
    async with _bytes(f"{head}\r\n\r\n".encode() + body) as url, _anthropic(url) as anthropic:
        count = await anthropic.count(question())

        assert count.input_tokens == 7


async def test_a_streamed_answer_may_be_compressed() -> None:
    body = gzip.compress(b"".join(AnthropicServer().events(asked())))
    head = f"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}"
    async with _bytes(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body) as url, _anthropic(url) as anthropic:
        assert text_of(await anthropic.generate(question())) == "Ready to serve."


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AnthropicServer() as proxy, _anthropic("http://vendor.invalid") as anthropic:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")

        assert text_of(await anthropic.generate(question())) == "Ready to serve."

        (request,) = proxy.requests
        assert request.path == "http://vendor.invalid/v1/messages"


def test_every_adapter_with_a_vendor_is_in_the_suites() -> None:
    from agentshell.provider.adapters import KINDS

    assert set(VENDORS) == set(KINDS) - {"local"}
