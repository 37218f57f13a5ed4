"""ToolService in this release: every RPC says that it is not there yet."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from agentshell.mesh import errors
from agentshell.mesh.config import ServerConfig
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.server import Server
from agentshell.tool.service import ToolService
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.tool.v1 import tool_service_pb2, tool_service_pb2_grpc


@pytest.fixture
async def tools() -> AsyncIterator[tuple[tool_service_pb2_grpc.ToolServiceAsyncStub, str]]:
    with tempfile.TemporaryDirectory(prefix="as-") as name:
        directory = Path(name)
        keyring = Keyring(directory / "keys.json", directory / "mesh.key")
        server = Server(ServerConfig(address="127.0.0.1:0"), f"unix:{directory}/m.sock", keyring)
        server.add(
            "kfm.tool.v1.ToolService",
            lambda it: tool_service_pb2_grpc.add_ToolServiceServicer_to_server(ToolService(), it),
        )
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield tool_service_pb2_grpc.ToolServiceStub(channel), f"Bearer {keyring.create('acme', 'ann')}"
        await server.stop(0)


async def test_every_rpc_answers_that_it_is_not_in_this_release(
    tools: tuple[tool_service_pb2_grpc.ToolServiceAsyncStub, str],
) -> None:
    stub, authorization = tools
    metadata = (("authorization", authorization),)
    call = content_pb2.ToolCall(call_id="1", name="clock")
    with pytest.raises(grpc.aio.AioRpcError) as listing:
        await stub.ListTools(tool_service_pb2.ListToolsRequest(), metadata=metadata, timeout=10)
    request = tool_service_pb2.InvokeToolRequest(call=call, request_id="r", attempt=1)
    with pytest.raises(grpc.aio.AioRpcError) as invocation:
        await anext(aiter(stub.InvokeTool(request, metadata=metadata, timeout=10)))
    refusals = [errors.of(caught.value) for caught in (listing, invocation)]
    assert [(refusal.reason, refusal.message) for refusal in refusals] == [
        (error_pb2.ERROR_REASON_NOT_IMPLEMENTED, f"ToolService.{rpc} is in the contract but not in this release")
        for rpc in ("ListTools", "InvokeTool")
    ]
    assert all(caught.value.code() is grpc.StatusCode.UNIMPLEMENTED for caught in (listing, invocation))
