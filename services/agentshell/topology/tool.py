"""The Tool service: built-in tools, sandboxed tools of packs, and tools of MCP servers."""

from __future__ import annotations

import os
from functools import partial

from agentshell.tool.egress import Egress
from agentshell.tool.mcp.servers import Servers
from agentshell.tool.results import Results
from agentshell.tool.sandbox.sandbox import Sandbox
from agentshell.tool.service import ToolService
from agentshell.topology.parts import Member, Parts
from kfm.tool.v1.tool_service_pb2_grpc import add_ToolServiceServicer_to_server


async def build(parts: Parts) -> Member:
    """Builds the service, with its sandbox, its egress and its MCP servers."""
    results, egress = Results(await parts.database()), Egress(parts.config.tool, os.environ)
    sandbox, servers = Sandbox.of(egress), Servers(egress, os.environ)
    service = ToolService(results, parts.channel("memory"), parts.channel("personality"), sandbox, egress, servers)
    await service.open()
    return Member(
        {"kfm.tool.v1.ToolService": partial(add_ToolServiceServicer_to_server, service)},
        stop=lambda _seconds: service.close(),
    )
