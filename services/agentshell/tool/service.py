"""ToolService: the tools that a personality exposes; built-in ones run here, its pack's own in a sandbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc.aio
import structlog

from agentshell.mesh import call, errors, paging
from agentshell.mesh.errors import AgentShellError
from agentshell.tool import metrics
from agentshell.tool.attempt import Attempt
from agentshell.tool.builtin.ask_agent import AskAgent
from agentshell.tool.builtin.table import TOOLS
from agentshell.tool.egress import Egress
from agentshell.tool.function import Function, Repeat
from agentshell.tool.grant import Grant
from agentshell.tool.http_tool import HttpTool
from agentshell.tool.invocation import Invocation
from agentshell.tool.mcp.servers import Servers
from agentshell.tool.mcp.tool import McpTool
from agentshell.tool.pack_tool import PackTool
from agentshell.tool.results import Results
from agentshell.tool.runs import Runs, Tell, Work
from agentshell.tool.sandbox.limits import Limits
from agentshell.tool.sandbox.sandbox import Sandbox
from kfm.content.v1.content_pb2 import ToolResult
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.personality.v1.personality_service_pb2 import GetRequest, Personality
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub
from kfm.tool.v1 import tool_service_pb2 as pb
from kfm.tool.v1 import tool_service_pb2_grpc
from kfm.tool.v1.tool_service_pb2 import Tool

_log = structlog.get_logger("agentshell.tool")

# A call without a deadline of its own still ends.
MAX_CALL_SECONDS = 120.0
# How long ListTools waits for a server of some of them; the server goes on starting meanwhile.
_DEFINE_SECONDS = 10.0
# How long a personality's exposed tools are cached, and for how many personalities.
_EXPOSED_SECONDS = 1.0
_EXPOSING_KEPT = 256
_MAX_SHOWN_CHARACTERS = 64
# Errors that a model caused and can correct. They are answers; any other error ends the RPC.
_MENDABLE = frozenset(
    {
        error_pb2.ERROR_REASON_TOOL_NOT_FOUND,
        error_pb2.ERROR_REASON_TOOL_ARGUMENTS_INVALID,
        error_pb2.ERROR_REASON_TOO_LARGE,
        error_pb2.ERROR_REASON_HOST_NOT_ALLOWED,
        error_pb2.ERROR_REASON_TOOL_FAILED,
        error_pb2.ERROR_REASON_TOOL_CRASHED,
        error_pb2.ERROR_REASON_TOOL_OUTPUT_INVALID,
        error_pb2.ERROR_REASON_TOOL_TIMEOUT,
        error_pb2.ERROR_REASON_TOOL_CPU_LIMIT,
        error_pb2.ERROR_REASON_TOOL_MEMORY_LIMIT,
        error_pb2.ERROR_REASON_TOOL_OUTPUT_LIMIT,
        error_pb2.ERROR_REASON_TOOL_HOST_CALL_LIMIT,
        error_pb2.ERROR_REASON_TOOL_EGRESS_LIMIT,
        error_pb2.ERROR_REASON_TOOL_ABILITY_DENIED,
        error_pb2.ERROR_REASON_TOOL_SERVER_UNAVAILABLE,
        error_pb2.ERROR_REASON_HTTP_UNAVAILABLE,
    }
)

_Tool: TypeAlias = Function | AskAgent | PackTool | HttpTool | McpTool
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class _Exposed:
    """What a personality exposes: its tools, by name."""

    personality: Personality
    tools: Mapping[str, _Tool]


class ToolService(tool_service_pb2_grpc.ToolServiceServicer):
    """Serves tools. They act on behalf of the caller; a personality decides which of them it exposes."""

    def __init__(
        self,
        results: Results,
        memory: grpc.aio.Channel,
        personality: grpc.aio.Channel,
        sandbox: Sandbox,
        egress: Egress,
        servers: Servers,
    ) -> None:
        self._results = results
        self._memory = MemoryServiceStub(memory)
        self._personality = PersonalityServiceStub(personality)
        self._sandbox = sandbox
        self._egress = egress
        self._servers = servers
        self._limits = Limits.of(egress.config)
        self._exposing: dict[tuple[str, str], tuple[_Exposed, float]] = {}
        self._runs = Runs()

    async def open(self) -> None:
        """Makes the schema, or brings it up to date."""
        await self._results.open()

    async def close(self) -> None:
        """Ends the sandboxes, and the connections to servers and hosts."""
        await self._sandbox.close()
        await self._servers.close()
        await self._egress.close()

    async def ListTools(self, request: pb.ListToolsRequest, context: _Context) -> pb.ListToolsResponse:
        """Lists the tools that the tenant's policy permits, by name, without those of servers that cannot be reached.

        Raises PERSONALITY_NOT_FOUND and PAGE_TOKEN_INVALID.
        """
        size = paging.page_size(request.page_size, default=100, most=1000)
        (after,) = paging.decode(request, request.page_token, str) or ("",)
        exposed = await self._ask(request.personality_id, request.personality_digest)
        names = [name for name in sorted(exposed.tools) if name > after and self._grant(exposed, name).has_tool]
        defined = await asyncio.gather(*(self._define(exposed, name) for name in names[:size]))
        token = paging.encode(request, names[size - 1]) if len(names) > size else ""
        return pb.ListToolsResponse(tools=filter(None, defined), next_page_token=token)

    async def InvokeTool(
        self, request: pb.InvokeToolRequest, context: _Context
    ) -> AsyncGenerator[pb.InvokeToolResponse]:
        """Streams a tool's progress and result; an error that the model can correct is a failure in the stream.

        Raises PERSONALITY_NOT_FOUND, REQUEST_ID_REUSED, FENCED, DEADLINE_EXCEEDED, and the tool's other errors.
        """
        name = request.call.name
        try:
            with metrics.measure(name if name in TOOLS else metrics.OTHER_TOOL):
                async with aclosing(self._invoke(request)) as responses:
                    async for response in responses:
                        yield response
        except AgentShellError as error:
            if error.reason not in _MENDABLE:
                raise
            yield pb.InvokeToolResponse(failure=errors.to_failure(error))

    async def _invoke(self, request: pb.InvokeToolRequest) -> AsyncGenerator[pb.InvokeToolResponse]:
        exposed = await self._find(request)
        name = request.call.name
        function, grant = exposed.tools[name], self._grant(exposed, name)
        grant.check_tool()
        arguments = function.check(request.call.arguments)
        if isinstance(function, AskAgent):
            yield pb.InvokeToolResponse(agent=function.step(arguments))
            return

        async def run(tell: Tell) -> ToolResult:
            budget = self._limits.budget(name)
            invocation = Invocation(
                request.request_id, exposed.personality, grant, budget, self._egress, self._memory, tell
            )
            async with asyncio.timeout(_remaining_seconds()):
                output = await function.call(arguments, invocation)
            return ToolResult(call_id=request.call.call_id, output=output)

        if function.repeat is Repeat.PURE:
            yield pb.InvokeToolResponse(result=await run(_nobody))
            return
        attempt = Attempt.at(request)
        settle = self._write if function.repeat is Repeat.WRITE else self._read
        async with aclosing(self._runs.follow(attempt, partial(settle, attempt, run))) as responses:
            async for response in responses:
                yield response

    async def _read(self, attempt: Attempt, run: Work, tell: Tell) -> ToolResult:
        return await self._results.keep(attempt, await run(tell))

    async def _write(self, attempt: Attempt, run: Work, tell: Tell) -> ToolResult:
        return await self._results.claim(attempt) or await self._read(attempt, run, tell)

    async def _find(self, request: pb.InvokeToolRequest) -> _Exposed:
        """Returns what the called tool's personality exposes. Raises TOOL_NOT_FOUND unless it exposes that tool."""
        personality_id, name = request.personality_id, request.call.name
        key = (personality_id, request.personality_digest)
        exposed, until = self._exposing.get(key, (None, 0.0))
        if exposed is None or name not in exposed.tools or time.monotonic() >= until:  # It may be new.
            exposed = await self._ask(personality_id, request.personality_digest)
            if len(self._exposing) >= _EXPOSING_KEPT:
                self._exposing.clear()
            self._exposing[key] = (exposed, time.monotonic() + _EXPOSED_SECONDS)
        if name not in exposed.tools:
            name = name[:_MAX_SHOWN_CHARACTERS]  # A model's invention may be of any length.
            names = ", ".join(sorted(exposed.tools)) or "none"
            owner = f"personality {personality_id!r}" if personality_id else "the shell"
            raise AgentShellError(
                error_pb2.ERROR_REASON_TOOL_NOT_FOUND,
                f"{owner} has no tool {name!r}; it has: {names}",
                metadata={"personality_id": personality_id, "tool": name},
            )
        return exposed

    async def _ask(self, personality_id: str, digest: str) -> _Exposed:
        """Returns what a personality exposes; for an empty id, all built-in tools, with no personality."""
        if not personality_id:
            return _Exposed(Personality(), TOOLS)
        asked = GetRequest(personality_id=personality_id, digest=digest, with_tool_code=True)
        personality = (await self._personality.Get(asked)).personality
        code = personality.tool_code
        own: dict[str, _Tool] = {tool.tool.name: PackTool(code, tool, self._sandbox) for tool in code.functions}
        own |= {operation.tool.name: HttpTool(operation) for operation in code.operations}
        own |= {tool.name: McpTool(tool, self._servers) for tool in code.mcp_tools}
        return _Exposed(personality, {name: TOOLS[name] for name in personality.tools if name in TOOLS} | own)

    async def _define(self, exposed: _Exposed, name: str) -> Tool | None:
        """Returns what callers see of a tool; None: its server cannot be reached, or has no such tool."""
        tool = exposed.tools[name]
        if not isinstance(tool, McpTool):
            return tool.definition
        try:
            async with asyncio.timeout(min(_remaining_seconds(), _DEFINE_SECONDS)):
                return await tool.define(self._grant(exposed, name))
        except (AgentShellError, TimeoutError) as error:
            _log.info("mcp tool not listed", server=tool.server, tool=name, reason=errors.of(error).name)
            return None

    def _grant(self, exposed: _Exposed, tool: str) -> Grant:
        personality = exposed.personality
        return Grant(
            self._egress.config, call.tenant(), personality.personality_id, tool, personality.tool_code.http_hosts
        )


def _remaining_seconds() -> float:
    remaining = call.current().remaining()
    return MAX_CALL_SECONDS if remaining is None else remaining


def _nobody(_text: str) -> None:
    """Drops a tool's progress: a pure one is done before anybody could read it."""
