"""A tool that a pack brings: a function that runs only in a sandbox. Its schemas are checked outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from agentshell.content import plain
from agentshell.schema import Schema
from agentshell.tool import arguments
from agentshell.tool.function import Repeat
from agentshell.tool.invocation import Invocation
from agentshell.tool.sandbox import outcome
from agentshell.tool.sandbox.sandbox import Sandbox
from kfm.personality.v1.personality_service_pb2 import ToolCode, ToolFunction


class PackTool:
    """A function of a pack, as `ToolService` runs it. Only its author knows whether it changes something."""

    repeat = Repeat.WRITE

    def __init__(self, code: ToolCode, function: ToolFunction, sandbox: Sandbox) -> None:
        self.definition = function.tool
        self._code = code
        self._function = function
        self._sandbox = sandbox

    def check(self, given: Struct) -> Mapping[str, Any]:
        """Returns the arguments as `call` takes them. Raises TOOL_ARGUMENTS_INVALID."""
        checked: dict[str, Any] = plain(given)
        arguments.check_schema(self.definition, checked)
        return checked

    async def call(self, checked: Mapping[str, Any], invocation: Invocation) -> Value:
        """Runs the tool. Raises SANDBOX_UNAVAILABLE, HOST_NOT_ALLOWED and all TOOL_ errors."""
        found = await self._sandbox.run(invocation.grant, self._code, self._function, checked, invocation.progress)
        if problem := Schema(plain(self.definition.output_schema)).problem(plain(found)):
            raise outcome.invalid(self.definition.name, problem)
        return found
