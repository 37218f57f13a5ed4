"""What one call of a pack's tool may use, and the errors for using more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agentshell.mesh.config import ToolConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason

_MEBIBYTE: Final = 1024 * 1024


@dataclass(slots=True)
class Budget:
    """What a call may still ask of the host."""

    tool: str
    host_calls: int
    egress_bytes: int

    def spend_call(self) -> None:
        """Spends one request to the host. Raises TOOL_HOST_CALL_LIMIT."""
        self.host_calls -= 1
        if self.host_calls < 0:
            raise exceeded(self.tool, error_pb2.ERROR_REASON_TOOL_HOST_CALL_LIMIT, "asks the host too often")

    def spend_bytes(self, count: int) -> None:
        """Spends bytes sent or received. Raises TOOL_EGRESS_LIMIT."""
        self.egress_bytes -= count
        if self.egress_bytes < 0:
            raise exceeded(self.tool, error_pb2.ERROR_REASON_TOOL_EGRESS_LIMIT, "sends and receives too many bytes")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of each call."""

    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    output_bytes: int
    host_calls: int
    egress_bytes: int

    @classmethod
    def of(cls, config: ToolConfig) -> Limits:
        """Returns the configured limits."""
        return cls(
            wall_seconds=config.max_seconds,
            cpu_seconds=config.max_cpu_seconds,
            memory_bytes=config.max_memory_mib * _MEBIBYTE,
            output_bytes=config.max_output_bytes,
            host_calls=config.max_host_calls,
            egress_bytes=config.max_egress_bytes,
        )

    def budget(self, tool: str) -> Budget:
        """Returns what a call may ask of the host."""
        return Budget(tool, self.host_calls, self.egress_bytes)


# The configuration key of each limit.
_KEYS: Final = {
    error_pb2.ERROR_REASON_TOOL_TIMEOUT: "tool.max_seconds",
    error_pb2.ERROR_REASON_TOOL_CPU_LIMIT: "tool.max_cpu_seconds",
    error_pb2.ERROR_REASON_TOOL_MEMORY_LIMIT: "tool.max_memory_mib",
    error_pb2.ERROR_REASON_TOOL_OUTPUT_LIMIT: "tool.max_output_bytes",
    error_pb2.ERROR_REASON_TOOL_HOST_CALL_LIMIT: "tool.max_host_calls",
    error_pb2.ERROR_REASON_TOOL_EGRESS_LIMIT: "tool.max_egress_bytes",
}


def exceeded(tool: str, reason: ErrorReason.ValueType, problem: str) -> AgentShellError:
    """The error for a call that exceeds a limit."""
    key = _KEYS[reason]
    return AgentShellError(
        reason,
        f"tool {tool!r} {problem}: ask it for less; an operator may raise configuration key {key!r}",
        metadata={"tool": tool, "key": key},
    )
