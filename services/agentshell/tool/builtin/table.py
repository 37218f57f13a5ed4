"""All built-in tools."""

from __future__ import annotations

from collections.abc import Mapping

from agentshell.tool.builtin.ask_agent import AskAgent
from agentshell.tool.builtin.calculator import calculator
from agentshell.tool.builtin.clock import clock
from agentshell.tool.builtin.http_get import http_get
from agentshell.tool.builtin.memory_search import memory_search
from agentshell.tool.builtin.memory_write import memory_write
from agentshell.tool.function import Function, Repeat

_TOOLS = (
    AskAgent(),
    Function(calculator, Repeat.PURE),
    Function(clock, Repeat.READ),
    Function(http_get, Repeat.READ),
    Function(memory_search, Repeat.READ),
    Function(memory_write, Repeat.WRITE),
)
TOOLS: Mapping[str, Function | AskAgent] = {tool.definition.name: tool for tool in _TOOLS}
"""By name, sorted."""
