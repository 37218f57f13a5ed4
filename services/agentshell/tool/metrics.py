"""Measures tool calls: one span and one observation per call, by tool and outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from prometheus_client import Histogram

from agentshell.mesh import errors
from agentshell.mesh.telemetry import TRACER

_BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CALL_SECONDS: Final = Histogram(
    "agentshell_tool_seconds", "Time of a tool call.", ["tool", "outcome"], buckets=_BUCKETS_SECONDS
)

OTHER_TOOL = "other"
"""Stands for any tool that is not built in: names come from packs, servers and models, but labels must be few."""
_OK = "OK"
_CANCELLED = "CANCELLED"


@contextmanager
def measure(tool: str) -> Generator[None]:
    """Measures the call that the block makes; its outcome is OK, CANCELLED, or the reason of what the block raises."""
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool}
    span = TRACER.start_span(f"execute_tool {tool}", attributes=attributes)
    began = time.perf_counter()
    outcome = _OK
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        outcome = _CANCELLED
        raise
    except Exception as failure:
        outcome = errors.of(failure).name
        raise
    finally:
        CALL_SECONDS.labels(tool, outcome).observe(time.perf_counter() - began)
        if outcome != _OK:
            span.set_attribute("error.type", outcome)
            span.set_status(trace.StatusCode.ERROR)
        span.end()
