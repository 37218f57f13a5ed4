"""What runs where: the one file in which parts meet. Each service is built here from the configuration."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import grpc.aio

from agentshell.db.database import Database
from agentshell.db.server import PostgresServer
from agentshell.gateway.projector import Projector
from agentshell.gateway.service import TurnService
from agentshell.gateway.turn_index import TurnIndex
from agentshell.log.dead_letter import SUFFIX
from agentshell.log.log import Log, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.mesh import channel
from agentshell.mesh.config import Config
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from agentshell.personality.service import PersonalityService
from agentshell.provider import adapters
from agentshell.provider.answers import Answers
from agentshell.provider.service import ProviderService
from agentshell.runtime.history import History
from agentshell.runtime.manager import Manager
from agentshell.runtime.steps.memory import MemoryRunner
from agentshell.runtime.steps.model import ModelRunner
from agentshell.runtime.steps.noop import NoopRunner
from agentshell.runtime.worker import Worker
from agentshell.tool.service import ToolService
from agentshell.turn import envelope
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server
from kfm.personality.v1.personality_service_pb2_grpc import add_PersonalityServiceServicer_to_server
from kfm.provider.v1.provider_service_pb2_grpc import add_ProviderServiceServicer_to_server
from kfm.tool.v1.tool_service_pb2_grpc import add_ToolServiceServicer_to_server
from kfm.turn.v1.turn_service_pb2_grpc import add_TurnServiceServicer_to_server

Register = Callable[[grpc.aio.Server], None]
Start = Callable[[], Awaitable[None]]
Stop = Callable[[float], Awaitable[None]]


async def _nothing() -> None:
    """Starts nothing."""


async def _nothing_for(_seconds: float) -> None:
    """Stops nothing."""


@dataclass(frozen=True, slots=True)
class Member:
    """A service as a process runs it: what it answers, and how it begins and ends. `stop` gets the seconds it has."""

    services: Mapping[str, Register] = field(default_factory=dict[str, Register])
    start: Start = _nothing
    stop: Stop = _nothing_for


class Parts:
    """What the services of a process share. Each part is made when it is first asked for, and closed at the end."""

    def __init__(self, config: Config, keyring: Keyring, addresses: Mapping[str, str]) -> None:
        self.config = config
        self._keyring = keyring
        self._addresses = addresses
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._database: Database | None = None
        self._log: Log | None = None
        self._open = contextlib.AsyncExitStack()

    def channel(self, service: str) -> grpc.aio.Channel:
        """Returns the channel to a service, wherever it is."""
        address = self._addresses[service]
        if address not in self._channels:
            self._channels[address] = channel.connect(address, self._keyring)
            self._open.push_async_callback(self._channels[address].close)
        return self._channels[address]

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
            config = self.config.log
            log = await self._open_log()
            self._open.push_async_callback(log.close)
            keep = timedelta(days=config.retention_days)
            await log.ensure_topic(Topic(envelope.TURNS, config.partitions, keep))
            await log.ensure_topic(Topic(envelope.OUTPUTS, config.partitions, keep, "relaxed"))
            await log.ensure_topic(Topic(envelope.TURNS + SUFFIX, config.partitions))
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

    async def close(self) -> None:
        """Closes what was made, the last first."""
        await self._open.aclose()


async def _gateway(parts: Parts) -> Member:
    log, index = await parts.log(), await TurnIndex.open(await parts.database())
    projector = Projector(log, index)
    config = parts.config
    service = TurnService(log, index, parts.channel("personality"), config.runtime, config.log.partitions)
    return Member(
        {"kfm.turn.v1.TurnService": lambda server: add_TurnServiceServicer_to_server(service, server)},
        projector.start,
        lambda _seconds: projector.stop(),
    )


async def _runtime(parts: Parts) -> Member:
    config, log = parts.config.runtime, await parts.log()
    memory, personality, provider = (parts.channel(name) for name in ("memory", "personality", "provider"))
    runners = {
        "memory": MemoryRunner(memory, config.max_passages),
        "model": ModelRunner(provider, memory, personality, config.max_history_messages),
        "noop": NoopRunner(),
    }
    manager = Manager(log, Worker(log, runners, config.max_active_steps), History(memory), config)
    return Member(start=manager.start, stop=manager.stop)


async def _provider(parts: Parts) -> Member:
    config = parts.config.provider
    service = ProviderService(config, adapters.build(config, os.environ), Answers(await parts.database()))
    await service.open()
    return Member(
        {"kfm.provider.v1.ProviderService": lambda server: add_ProviderServiceServicer_to_server(service, server)},
        stop=lambda _seconds: service.close(),
    )


async def _memory(parts: Parts) -> Member:
    service = MemoryService(parts.config.memory, await PgvectorStore.open(await parts.database()))
    return Member({"kfm.memory.v1.MemoryService": lambda server: add_MemoryServiceServicer_to_server(service, server)})


async def _personality(parts: Parts) -> Member:
    service = PersonalityService(parts.config.personality, parts.channel("memory"))
    return Member(
        {
            "kfm.personality.v1.PersonalityService": lambda server: add_PersonalityServiceServicer_to_server(
                service, server
            )
        },
        service.start,
        lambda _seconds: service.stop(),
    )


async def _tool(_parts: Parts) -> Member:
    service = ToolService()
    return Member({"kfm.tool.v1.ToolService": lambda server: add_ToolServiceServicer_to_server(service, server)})


# In the order in which they begin; they end in the reverse order.
SERVICES: Mapping[str, Callable[[Parts], Awaitable[Member]]] = {
    "memory": _memory,
    "provider": _provider,
    "personality": _personality,
    "tool": _tool,
    "runtime": _runtime,
    "gateway": _gateway,
}
