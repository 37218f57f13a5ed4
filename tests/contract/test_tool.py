"""ToolService in this release: every RPC says that it is not there yet."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from tests.contract.serving import member, refusal

from agentshell.tool.service import ToolService
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.tool.v1 import tool_service_pb2, tool_service_pb2_grpc


@pytest.fixture
async def tools() -> AsyncIterator[tuple[tool_service_pb2_grpc.ToolServiceAsyncStub, tuple[tuple[str, str]]]]:
    async with member() as served:
        served.server.add(
            "kfm.tool.v1.ToolService",
            lambda it: tool_service_pb2_grpc.add_ToolServiceServicer_to_server(ToolService(), it),
        )
        async with await served.start() as channel:
            yield tool_service_pb2_grpc.ToolServiceStub(channel), served.key()


async def test_every_rpc_answers_that_it_is_not_in_this_release(
    tools: tuple[tool_service_pb2_grpc.ToolServiceAsyncStub, tuple[tuple[str, str]]],
) -> None:
    stub, key = tools
    call = content_pb2.ToolCall(call_id="1", name="clock")
    invocation = tool_service_pb2.InvokeToolRequest(call=call, request_id="r", attempt=1)
    refusals = [
        await refusal(stub.ListTools(tool_service_pb2.ListToolsRequest(), metadata=key, timeout=10)),
        await refusal(anext(aiter(stub.InvokeTool(invocation, metadata=key, timeout=10)))),
    ]
    reason, code = error_pb2.ERROR_REASON_NOT_IMPLEMENTED, grpc.StatusCode.UNIMPLEMENTED
    assert [(error.reason, error.code, error.message) for error in refusals] == [
        (reason, code, f"ToolService.{rpc} is in the contract but not in this release")
        for rpc in ("ListTools", "InvokeTool")
    ]
