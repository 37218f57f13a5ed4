"""What the services of a process share, and how a process sees each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import grpc.aio

from agentshell.db.database import Database
from agentshell.db.server import PostgresServer
from agentshell.log.dead_letter import SUFFIX
from agentshell.log.log import Log, Topic
from agentshell.log.postgres import PostgresLog
from agentshell.mesh.config import Config, LogConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from kfm.error.v1 import error_pb2

Register = Callable[[grpc.aio.Server], None]
Connect = Callable[[str], grpc.aio.Channel]
"""Returns a new channel to the service of that name."""
Start = Callable[[], Awaitable[None]]
Stop = Callable[[float], Awaitable[None]]
Work = Callable[[], Coroutine[Any, Any, None]]


async def _nothing() -> None:
    """Starts nothing."""


async def _nothing_for(_seconds: float) -> None:
    """Stops nothing."""


def topics(config: LogConfig) -> Sequence[Topic]:
    """Returns the topics of the log. Dead letters wait for an operator, so they are kept forever by default."""

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
    """A service as a process runs it: its gRPC services, how it starts and stops, and its background work.

    `stop` receives the seconds it may take. Work in `background` begins after `start` and is cancelled before `stop`.
    """

    services: Mapping[str, Register] = field(default_factory=dict[str, Register])
    start: Start = _nothing
    stop: Stop = _nothing_for
    background: Sequence[Work] = ()


class Parts:
    """What the services of a process share. Each part is created on first use, and closed by `close`."""

    def __init__(self, config: Config, connect: Connect) -> None:
        self.config = config
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._database: Database | None = None
        self._log: Log | None = None
        self._open = contextlib.AsyncExitStack()

    def channel(self, service: str) -> grpc.aio.Channel:
        """Returns the channel to a service, wherever it runs."""
        if service not in self._channels:
            self._channels[service] = self._connect(service)
            self._open.push_async_callback(self._channels[service].close)
        return self._channels[service]

    async def database(self) -> Database:
        """Returns the configured database; if none is configured, starts the bundled one."""
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
        """Returns the log, with its topics in place."""
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
            from agentshell.log.iggy import IggyLog  # Its SDK is an optional dependency.
        except ImportError:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                "configuration key 'log.driver' = 'iggy' needs its SDK; pip install 'agentshell[iggy]'",
            ) from None
        return await IggyLog.open(config.url, lease_seconds=config.lease_seconds)

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Registers `close` for `Parts.close` to await, in reverse order of registration."""
        self._open.push_async_callback(close)

    async def close(self) -> None:
        """Closes the parts in reverse order of creation."""
        await self._open.aclose()
