"""The outcome of a call: the tool's output, or an error. Pure; trusts nothing that a worker says."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.struct_pb2 import Value

from agentshell.content import fill
from agentshell.mesh.errors import AgentShellError
from agentshell.tool.sandbox import limits
from kfm.error.v1 import error_pb2

_SHOWN_CHARACTERS: Final = 1000
# The signals that end a process which has used up its CPU time.
_CPU_SIGNALS: Final = (signal.SIGPROF, signal.SIGXCPU)


def read(tool: str, said: Mapping[str, Any]) -> Value:
    """Returns the output, any JSON that a message can carry.

    Raises TOOL_FAILED, TOOL_CRASHED, TOOL_MEMORY_LIMIT, TOOL_OUTPUT_LIMIT and TOOL_OUTPUT_INVALID.
    """
    match _decode(said.get("said")) if "said" in said else said:
        case {"output": output}:
            return _value(tool, output)
        case {"failed": "output"}:
            raise limits.exceeded(tool, error_pb2.ERROR_REASON_TOOL_OUTPUT_LIMIT, "answers too much")
        case {"failed": "memory"} | {"error": {"kind": "memory"}}:
            raise _out_of_memory(tool)
        case {"failed": _}:
            raise crashed(tool, str(said.get("message", "it broke down")))
        case {"error": {"message": str(message)}}:
            raise failed(tool, message)
        case _:
            raise invalid(tool, "it is not JSON")


def died(tool: str, number: int) -> AgentShellError:
    """The error for a process that ended during the call, by a signal."""
    if number in _CPU_SIGNALS:
        return limits.exceeded(tool, error_pb2.ERROR_REASON_TOOL_CPU_LIMIT, "computes too long")
    if number == signal.SIGKILL:  # Not sent by us, but by the kernel when out of memory.
        return _out_of_memory(tool)
    return crashed(tool, f"its process ended by signal {number}")


def timed_out(tool: str) -> AgentShellError:
    """The error for a call that took too long."""
    return limits.exceeded(tool, error_pb2.ERROR_REASON_TOOL_TIMEOUT, "takes too long")


def crashed(tool: str, problem: str) -> AgentShellError:
    """The error for an interpreter that broke down."""
    return _error(error_pb2.ERROR_REASON_TOOL_CRASHED, tool, f"broke its interpreter: {problem[:_SHOWN_CHARACTERS]}")


def failed(tool: str, problem: str) -> AgentShellError:
    """The error for a tool that says it failed."""
    return _error(error_pb2.ERROR_REASON_TOOL_FAILED, tool, f"failed: {problem[:_SHOWN_CHARACTERS]}")


def invalid(tool: str, problem: str) -> AgentShellError:
    """The error for output that is not what the tool declares."""
    problem = problem[:_SHOWN_CHARACTERS]
    return _error(error_pb2.ERROR_REASON_TOOL_OUTPUT_INVALID, tool, f"gives invalid output: {problem}")


def _out_of_memory(tool: str) -> AgentShellError:
    return limits.exceeded(tool, error_pb2.ERROR_REASON_TOOL_MEMORY_LIMIT, "needs too much memory")


def _error(reason: error_pb2.ErrorReason.ValueType, tool: str, problem: str) -> AgentShellError:
    return AgentShellError(reason, f"tool {tool!r} {problem}", metadata={"tool": tool})


def _value(tool: str, output: Any) -> Value:
    value = Value()
    try:
        fill(value, output)  # Refuses what is nested too deeply.
    except (ValueError, RecursionError) as error:
        raise invalid(tool, str(error)) from None
    return value


def _decode(said: object) -> Any:
    try:
        return json.loads(said) if isinstance(said, str) else None
    except (ValueError, RecursionError):
        return None
