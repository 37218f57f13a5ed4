"""ToolService as it stands in this release: the contract is there, sandboxes are not, and nothing runs without one."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc.aio

from agentshell.mesh import errors
from kfm.tool.v1 import tool_service_pb2, tool_service_pb2_grpc


class ToolService(tool_service_pb2_grpc.ToolServiceServicer):
    """Answers every RPC with NOT_IMPLEMENTED."""

    async def ListTools(
        self,
        request: tool_service_pb2.ListToolsRequest,
        context: grpc.aio.ServicerContext[tool_service_pb2.ListToolsRequest, tool_service_pb2.ListToolsResponse],
    ) -> tool_service_pb2.ListToolsResponse:
        """Raises NOT_IMPLEMENTED."""
        raise errors.not_implemented("ToolService.ListTools")

    async def InvokeTool(
        self,
        request: tool_service_pb2.InvokeToolRequest,
        context: grpc.aio.ServicerContext[tool_service_pb2.InvokeToolRequest, tool_service_pb2.InvokeToolResponse],
    ) -> AsyncGenerator[tool_service_pb2.InvokeToolResponse]:
        """Raises NOT_IMPLEMENTED."""
        raise errors.not_implemented("ToolService.InvokeTool")
        yield  # Never reached: it makes this a stream.
