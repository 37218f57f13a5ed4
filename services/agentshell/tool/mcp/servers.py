"""The servers that an operator configures. Each tenant has connections of its own, opened when first needed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from agentshell.mesh import web
from agentshell.mesh.config import McpServerConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.tool.egress import Egress
from agentshell.tool.grant import Grant
from agentshell.tool.mcp.connection import Connect, Connection
from agentshell.tool.mcp.program import MAX_LINE_BYTES, speak
from kfm.error.v1 import error_pb2


class Servers:
    """At most `tool.max_mcp_connections` connections; the longest unused one makes way for another."""

    def __init__(self, egress: Egress, environment: Mapping[str, str]) -> None:
        """`environment` holds the variables that a server may get."""
        self._egress = egress
        self._environment = environment
        self._connections: OrderedDict[tuple[str, str], Connection] = OrderedDict()  # The longest unused first.
        self._alive: set[Connection] = set()

    async def close(self) -> None:
        """Ends all connections, and their processes."""
        self._connections.clear()
        await asyncio.gather(*(connection.close() for connection in self._alive))

    @asynccontextmanager
    async def connection(self, grant: Grant, server: str) -> AsyncGenerator[Connection]:
        """Yields the connection to a server that belongs to the grant's tenant.

        Raises TOOL_ABILITY_DENIED, HOST_NOT_ALLOWED and OVERLOADED.
        """
        config = grant.server(server)
        connect = self._way(grant, config)
        key = (grant.tenant_id, server)
        found = self._connections.pop(key, None)
        if found is None or found.is_over:
            await self._make_place()
            found = self._connections.get(key) or self._begin(server, connect)  # Another may have opened it meanwhile.
        self._connections[key] = found
        found.users += 1
        try:
            yield found
        finally:
            found.users -= 1
            if found.is_over and not found.users:
                found.end()
                if self._connections.get(key) is found:
                    del self._connections[key]

    def _begin(self, server: str, connect: Connect) -> Connection:
        connection = Connection(server, connect)
        self._alive.add(connection)
        connection.on_close(self._alive.discard)
        return connection

    async def _make_place(self) -> None:
        """Closes unused connections until there is room for another. Raises OVERLOADED."""
        while len(self._connections) >= self._egress.config.max_mcp_connections:
            idle = next((key for key, connection in self._connections.items() if not connection.users), None)
            if idle is None:
                raise AgentShellError(
                    error_pb2.ERROR_REASON_OVERLOADED,
                    "all connections to mcp servers are in use; try again, or raise 'tool.max_mcp_connections'",
                    metadata={"key": "tool.max_mcp_connections"},
                    retry_delay=timedelta(seconds=1),
                )
            await self._connections.pop(idle).close()

    def _way(self, grant: Grant, config: McpServerConfig) -> Connect:
        if config.command:
            passed = {name: self._environment[name] for name in config.pass_env if name in self._environment}
            return lambda ended: speak((config.command, *config.args), {**passed, **config.env}, ended)
        url = web.parse(config.url)
        grant.check_host(url, is_operators=True)
        secrets = [grant.secret(config.secret, url)] if config.secret else []
        headers = self._egress.with_secrets({}, secrets)
        return lambda _ended: self._reach(config.url, headers)

    @asynccontextmanager
    async def _reach(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[tuple[Any, Any]]:
        from mcp.client.streamable_http import streamable_http_client

        async with (
            self._egress.web.new_client(headers, max_body_bytes=MAX_LINE_BYTES) as client,
            streamable_http_client(url, http_client=client) as streams,
        ):
            yield streams
