"""All built-in tools."""

from __future__ import annotations

from collections.abc import Mapping

from agentshell.tool.builtin.calculator import calculator
from agentshell.tool.builtin.clock import clock
from agentshell.tool.builtin.memory_search import memory_search
from agentshell.tool.builtin.memory_write import memory_write
from agentshell.tool.function import Function, Repeat

_FUNCTIONS = (
    Function(calculator, Repeat.PURE),
    Function(clock, Repeat.READ),
    Function(memory_search, Repeat.READ),
    Function(memory_write, Repeat.WRITE),
)
TOOLS: Mapping[str, Function] = {function.definition.name: function for function in _FUNCTIONS}
"""By name, in the order of their names."""
