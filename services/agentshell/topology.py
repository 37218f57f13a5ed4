"""What runs where: the one file in which parts meet. Each service is built here from the configuration."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import grpc.aio

from agentshell.db.database import Database
from agentshell.db.server import PostgresServer
from agentshell.gateway.admin_service import AdminService
from agentshell.gateway.backlog import Backlog
from agentshell.gateway.projector import GROUP as GATEWAYS
from agentshell.gateway.projector import Projector
from agentshell.gateway.service import TurnService
from agentshell.gateway.turn_index import TurnIndex
from agentshell.log.dead_letter import SUFFIX
from agentshell.log.lag import Lag
from agentshell.log.log import Log, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.memory.cache import cache as caches
from agentshell.memory.service import MemoryService
from agentshell.memory.stores import index as indexes
from agentshell.memory.stores.beside import BesideStore
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.sweeper import Sweeper
from agentshell.mesh.config import Config, LogConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.personality.service import PersonalityService
from agentshell.provider.service import ProviderService
from agentshell.runtime.conclusion import Conclusion
from agentshell.runtime.dispatch import Dispatch, LocalDispatch, LogDispatch
from agentshell.runtime.history import History
from agentshell.runtime.manager import GROUP as MANAGERS
from agentshell.runtime.manager import Manager
from agentshell.runtime.owner import Means
from agentshell.runtime.parking import Parking
from agentshell.runtime.step_consumer import GROUP as WORKERS
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
from agentshell.runtime.sub_turns import SubTurns
from agentshell.runtime.worker import Worker
from agentshell.tool.egress import Egress
from agentshell.tool.mcp.servers import Servers
from agentshell.tool.results import Results
from agentshell.tool.sandbox.sandbox import Sandbox
from agentshell.tool.service import ToolService
from agentshell.turn import envelope
from kfm.admin.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server
from kfm.personality.v1.personality_service_pb2_grpc import add_PersonalityServiceServicer_to_server
from kfm.provider.v1.provider_service_pb2_grpc import add_ProviderServiceServicer_to_server
from kfm.tool.v1.tool_service_pb2_grpc import add_ToolServiceServicer_to_server
from kfm.turn.v1.turn_service_pb2_grpc import add_TurnServiceServicer_to_server

Register = Callable[[grpc.aio.Server], None]
Connect = Callable[[str], grpc.aio.Channel]
"""Returns a new channel to the service of that name."""
Start = Callable[[], Awaitable[None]]
Stop = Callable[[float], Awaitable[None]]


# Whose lag is measured.
_GROUPS = ((envelope.TURNS, MANAGERS), (envelope.TURNS, GATEWAYS), (envelope.STEPS, WORKERS))


async def _nothing() -> None:
    """Starts nothing."""


async def _nothing_for(_seconds: float) -> None:
    """Stops nothing."""


def topics(config: LogConfig) -> Sequence[Topic]:
    """Returns the topics of the log. Dead letters wait for somebody, so they are kept for ever by default."""

    def topic(name: str, retention_days: int | None, durability: Literal["durable", "relaxed"] = "durable") -> Topic:
        days = config.retention_days_of(name) or retention_days
        return Topic(name, config.partitions_of(name), timedelta(days=days) if days else None, durability)

    return (
        topic(envelope.TURNS, config.retention_days),
        topic(envelope.OUTPUTS, config.retention_days, "relaxed"),
        topic(envelope.STEPS, config.retention_days),
        topic(envelope.TURNS + SUFFIX, None),
        topic(envelope.STEPS + SUFFIX, None),
    )


@dataclass(frozen=True, slots=True)
class Member:
    """A service as a process runs it: what it answers, and how it begins and ends. `stop` gets the seconds it has."""

    services: Mapping[str, Register] = field(default_factory=dict[str, Register])
    start: Start = _nothing
    stop: Stop = _nothing_for


class Parts:
    """What the services of a process share. Each part is made when it is first asked for, and closed at the end."""

    def __init__(self, config: Config, connect: Connect) -> None:
        self.config = config
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._database: Database | None = None
        self._log: Log | None = None
        self._open = contextlib.AsyncExitStack()

    def channel(self, service: str) -> grpc.aio.Channel:
        """Returns the channel to a service, wherever it is."""
        if service not in self._channels:
            self._channels[service] = self._connect(service)
            self._open.push_async_callback(self._channels[service].close)
        return self._channels[service]

    async def database(self) -> Database:
        """Returns the database: the configured one, else the bundled one, started."""
        if self._database is None:
            url = self.config.database.url
            if not url:
                server = await PostgresServer.start(self.config.data_dir)
                self._open.push_async_callback(server.stop)
                url = server.url
            self._database = await Database.open(url, self.config.database.max_connections)
            self._open.push_async_callback(self._database.close)
        return self._database

    async def log(self) -> Log:
        """Returns the log, with its topics."""
        if self._log is None:
            log = await self._open_log()
            self._open.push_async_callback(log.close)
            for topic in topics(self.config.log):
                await log.ensure_topic(topic)
            self._log = log
        return self._log

    async def _open_log(self) -> Log:
        config = self.config.log
        if config.driver == "postgres":
            return await PostgresLog.open(await self.database(), lease_seconds=config.lease_seconds)
        try:
            from agentshell.log.iggy import IggyLog  # Its SDK is an extra.
        except ImportError:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                "configuration key 'log.driver' = 'iggy' needs its SDK; pip install 'agentshell[iggy]'",
            ) from None
        return await IggyLog.open(config.url, lease_seconds=config.lease_seconds)

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Has something closed in its turn."""
        self._open.push_async_callback(close)

    async def close(self) -> None:
        """Closes what was made, the last first."""
        await self._open.aclose()


async def _gateway(parts: Parts) -> Member:
    log, database, config = await parts.log(), await parts.database(), parts.config
    index = await TurnIndex.open(database)
    projector, lag = Projector(log, index), Lag(log, _GROUPS)
    backlog = Backlog(database, config.runtime)
    admin = AdminService(log, index, [envelope.TURNS, envelope.STEPS])
    partitions = config.log.partitions_of(envelope.TURNS)
    service = TurnService(log, index, backlog, parts.channel("personality"), config.runtime, partitions)

    async def start() -> None:
        await projector.start()
        await lag.start()

    async def stop(_seconds: float) -> None:
        await lag.stop()
        await projector.stop()

    return Member(
        {
            "kfm.turn.v1.TurnService": lambda server: add_TurnServiceServicer_to_server(service, server),
            "kfm.admin.v1.AdminService": lambda server: add_AdminServiceServicer_to_server(admin, server),
        },
        start,
        stop,
    )


async def _runtime(parts: Parts) -> Member:
    """A manager with a worker of its own: steps are handed over, not written down a second time."""
    worker = await _local_worker(parts)
    manager = await _new_manager(parts, LocalDispatch(worker))

    async def stop(seconds: float) -> None:
        await worker.drain(seconds)
        await manager.stop()

    return Member(start=manager.start, stop=stop)


async def _manager(parts: Parts) -> Member:
    """A manager whose steps go to workers in other processes, by the log."""
    manager = await _new_manager(parts, LogDispatch())
    return Member(start=manager.start, stop=lambda _seconds: manager.stop())


async def _worker(parts: Parts) -> Member:
    """A worker for managers in other processes."""
    partitions = parts.config.log.partitions_of(envelope.TURNS)
    consumer = StepConsumer(await parts.log(), await _local_worker(parts), partitions)
    return Member(start=consumer.start, stop=consumer.stop)


async def _new_manager(parts: Parts, dispatch: Dispatch) -> Manager:
    parking = Parking(await parts.database())
    await parking.open()
    conclusion = Conclusion(History(parts.channel("memory")), SubTurns(parts.channel("gateway")), parking)
    return Manager(Means(await parts.log(), dispatch, parking, conclusion, parts.config.runtime))


async def _local_worker(parts: Parts) -> Worker:
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


async def _provider(parts: Parts) -> Member:
    async with contextlib.AsyncExitStack() as stack:
        opening = ProviderService.open(parts.config.provider, os.environ, await parts.database())
        service = await stack.enter_async_context(opening)
        open_parts = stack.pop_all()
    return Member(
        {"kfm.provider.v1.ProviderService": lambda server: add_ProviderServiceServicer_to_server(service, server)},
        stop=lambda _seconds: open_parts.aclose(),
    )


async def _memory(parts: Parts) -> Member:
    database = await parts.database()
    index = indexes.of(parts.config.memory, os.environ)
    if index is None:
        store = await PgvectorStore.open(database)
    else:
        parts.on_close(index.close)
        store = await BesideStore.open_beside(database, index)
    cache = caches.of(parts.config.memory)
    if cache is not None:
        parts.on_close(cache.close)
    service = MemoryService(parts.config.memory, database, store, parts.channel("provider"), cache)
    sweeper = Sweeper(database, store, parts.config.memory.sweep_seconds)

    async def start() -> None:
        await sweeper.start()
        await service.reembedding.start()

    async def stop(_seconds: float) -> None:
        await service.reembedding.stop()
        await sweeper.stop()

    return Member(
        {"kfm.memory.v1.MemoryService": lambda server: add_MemoryServiceServicer_to_server(service, server)},
        start,
        stop,
    )


async def _personality(parts: Parts) -> Member:
    config = parts.config
    service = PersonalityService(config.personality, parts.channel("memory"), config.data_dir / "packs")
    return Member(
        {
            "kfm.personality.v1.PersonalityService": lambda server: add_PersonalityServiceServicer_to_server(
                service, server
            )
        },
        service.start,
        lambda _seconds: service.stop(),
    )


async def _tool(parts: Parts) -> Member:
    results, egress = Results(await parts.database()), Egress(parts.config.tool, os.environ)
    sandbox, servers = Sandbox.of(egress), Servers(egress, os.environ)
    service = ToolService(results, parts.channel("memory"), parts.channel("personality"), sandbox, egress, servers)
    await service.open()
    return Member(
        {"kfm.tool.v1.ToolService": lambda server: add_ToolServiceServicer_to_server(service, server)},
        stop=lambda _seconds: service.close(),
    )


# In the order in which they begin; they end in the reverse order. `manager` and `worker` are `runtime` taken apart.
SERVICES: Mapping[str, Callable[[Parts], Awaitable[Member]]] = {
    "memory": _memory,
    "provider": _provider,
    "personality": _personality,
    "tool": _tool,
    "worker": _worker,
    "manager": _manager,
    "runtime": _runtime,
    "gateway": _gateway,
}
# What a process runs that is told nothing.
WHOLE: Sequence[str] = [name for name in SERVICES if name not in ("worker", "manager")]
