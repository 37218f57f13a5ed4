"""A pack's own tools, in the form that the service that runs them takes."""

from __future__ import annotations

from agentshell.personality.pack import Pack
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.tool.v1.tool_service_pb2 import Tool


def of(pack: Pack) -> pb.ToolCode:
    """Returns a pack's own tools; empty if it has none and declares no host."""
    tools = pack.manifest.tools
    code = pb.ToolCode(
        files=pack.tool_files,
        http_hosts=pack.manifest.abilities.http_hosts,
        operations=pack.operations,
    )
    if pack.tools:
        code.tier = pb.SandboxTier.Value(f"SANDBOX_TIER_{tools.tier.upper()}")
    for function in pack.tools:
        tool = Tool(name=function.name, description=function.description)
        tool.input_schema.update(function.input_schema)
        tool.output_schema.update(function.output_schema)
        code.functions.add(tool=tool, module=function.module)
    for served in tools.mcp if tools.enabled else ():
        for name in served.tools:
            code.mcp_tools.add(server=served.server, name=name)
    return code
