"""A worker that takes steps through the log from managers in other processes."""

from __future__ import annotations

from collections.abc import Mapping

from agentshell.runtime.step_consumer import StepConsumer
from agentshell.runtime.steps.agent import AgentRunner
from agentshell.runtime.steps.http import HttpRunner
from agentshell.runtime.steps.memory import MemoryRunner
from agentshell.runtime.steps.model import ModelRunner
from agentshell.runtime.steps.noop import NoopRunner
from agentshell.runtime.steps.plan import PlanRunner
from agentshell.runtime.steps.sources import Sources
from agentshell.runtime.steps.step import StepRunner
from agentshell.runtime.steps.tool import ToolRunner
from agentshell.runtime.worker import Worker
from agentshell.topology.parts import Member, Parts
from agentshell.turn import envelope


async def build(parts: Parts) -> Member:
    """Builds a worker without a manager."""
    partitions = parts.config.log.partitions_of(envelope.TURNS)
    consumer = StepConsumer(await parts.log(), await new_worker(parts), partitions)
    return Member(start=consumer.start, stop=consumer.stop)


async def new_worker(parts: Parts) -> Worker:
    """Returns a worker that runs attempts at every kind of step."""
    config = parts.config.runtime
    gateway, memory, provider, tool = (parts.channel(name) for name in ("gateway", "memory", "provider", "tool"))
    sources = Sources(memory, parts.channel("personality"), tool, config.max_history_messages)
    http = HttpRunner(config.http_hosts, config.max_http_bytes)
    parts.on_close(http.close)
    agent = AgentRunner(gateway, config.max_depth)
    runners: Mapping[str, StepRunner] = {
        "agent": agent,
        "http": http,
        "memory": MemoryRunner(memory, sources, config.max_passages),
        "model": ModelRunner(provider, sources, config.max_context_tokens),
        "noop": NoopRunner(),
        "plan": PlanRunner(provider, sources, config.max_context_tokens),
        "tool": ToolRunner(tool, agent),
    }
    return Worker(await parts.log(), runners, config.max_active_steps)
