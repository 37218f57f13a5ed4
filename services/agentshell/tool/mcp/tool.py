"""A tool of a Model Context Protocol server, as `ToolService` runs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from agentshell.content import fill, plain
from agentshell.mesh.errors import AgentShellError
from agentshell.schema import Schema
from agentshell.tool import arguments
from agentshell.tool.function import Repeat
from agentshell.tool.grant import Grant
from agentshell.tool.invocation import Invocation
from agentshell.tool.mcp.connection import Connection, texts_of
from agentshell.tool.mcp.servers import Servers
from agentshell.tool.sandbox import limits, outcome
from kfm.error.v1 import error_pb2
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.tool.v1.tool_service_pb2 import Tool


class McpTool:
    """A tool of a server, for as long as the server has it. Only the server knows whether it changes something."""

    repeat = Repeat.WRITE

    def __init__(self, tool: pb.McpTool, servers: Servers) -> None:
        self.server = tool.server
        self._name = tool.name
        self._servers = servers

    async def define(self, grant: Grant) -> Tool:
        """Returns what callers see, as the server describes it.

        Raises TOOL_NOT_FOUND, TOOL_SERVER_UNAVAILABLE, TOOL_ABILITY_DENIED, HOST_NOT_ALLOWED and OVERLOADED.
        """
        async with self._servers.connection(grant, self.server) as connection:
            return await self._find(connection)

    async def _find(self, connection: Connection) -> Tool:
        found = (await connection.tools()).get(self._name)
        if found is None:
            raise AgentShellError(
                error_pb2.ERROR_REASON_TOOL_NOT_FOUND,
                f"mcp server {self.server!r} has no tool {self._name!r}; correct the pack's tools.mcp, or the server",
                metadata={"server": self.server, "tool": self._name},
            )
        return found

    def check(self, given: Struct) -> Mapping[str, Any]:
        """Returns the arguments for `call`, which checks them: only the server has their schema."""
        return plain(given)

    async def call(self, checked: Mapping[str, Any], invocation: Invocation) -> Value:
        """Runs the tool. Raises what `define` raises, TOOL_ARGUMENTS_INVALID and other TOOL_ errors."""
        config = invocation.egress.config
        async with self._servers.connection(invocation.grant, self.server) as connection:
            await connection.started()
            try:
                async with asyncio.timeout(config.max_seconds):
                    definition = await self._find(connection)
                    arguments.check_schema(definition, checked)
                    result = await connection.call(self._name, checked, invocation.progress)
            except TimeoutError:
                connection.retire()
                raise outcome.timed_out(self._name) from None
        text = "\n".join(texts_of(result))
        if result.is_error:
            raise outcome.failed(self._name, text or "its server gives no details")
        structured = result.structured_content
        size = len(json.dumps(structured).encode() if structured is not None else text.encode())
        if size > config.max_output_bytes:
            raise limits.exceeded(self._name, error_pb2.ERROR_REASON_TOOL_OUTPUT_LIMIT, "answers too much")
        return _output(definition, text if structured is None else structured)


def _output(definition: Tool, answer: Any) -> Value:
    schema, output = plain(definition.output_schema), Value()
    if schema and (problem := Schema(schema).problem(answer)):
        raise outcome.invalid(definition.name, problem)
    try:
        fill(output, answer)
    except (ValueError, RecursionError) as error:
        raise outcome.invalid(definition.name, str(error)) from None
    return output
