"""The processes that share a log: announces changes to them, hears theirs, and knows which are alive."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import psycopg
import structlog
from psycopg.pq.abc import PGconn

from agentshell.db.database import Connection, Database
from agentshell.log.reach import reach
from agentshell.mesh.errors import AgentShellError

MAX_PULSE_SECONDS = 1.0  # What a lost notification would have told is noticed within this.
WATCH_SECONDS = 0.15  # Other processes' deaths are noticed within this.
MIN_RECONNECT_SECONDS = 0.05
MAX_RECONNECT_SECONDS = 2.0

_CHANNEL = "agentshell_log"
_LOCK_CLASS = 7564  # The same as in the view log.processes.
_NOTIFY = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1::text, $2::text)"
_ENDS_A_MESSAGE = 250  # Postgres accepts less than 8000 bytes.

_FAILURES = (psycopg.Error, OSError, TimeoutError, AgentShellError)
_logger = structlog.get_logger(__name__)


class Listener(Protocol):
    """Receives reports from `Peers`."""

    def heard_ends(self, ends: Mapping[int, int]) -> None:
        """Partitions have grown: partition id -> next offset."""
        ...

    def heard_generation(self, group_id: int, generation: int) -> None:
        """A group has reached a generation."""
        ...

    async def look(self, connection: Connection, *, thorough: bool) -> None:
        """Time to check whether members are alive and, if `thorough`, for changes that no message has told."""
        ...

    def lost(self) -> None:
        """The connection is gone: what is known may be stale, and other processes consider this one dead."""
        ...


class Peers:
    """This process among the others. It listens on one connection, and is alive for as long as that one is.

    `listener` is asked to look every `pulse_seconds`, and more often if there are other processes.
    """

    def __init__(self, database: Database, listener: Listener, pulse_seconds: float) -> None:
        self._database = database
        self._listener = listener
        self._notify = database.statement(_NOTIFY)
        self._pulse_seconds = min(pulse_seconds, MAX_PULSE_SECONDS)
        self.process = 0  # The number under which other processes see this one.
        self._connected = asyncio.Event()
        self._alone = False
        self._unheard: deque[str] = deque()  # Messages that came along with an answer.
        self._resting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._untold: dict[int, int] = {}
        self._has_untold = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connects. Raises LOG_UNAVAILABLE; once connected, it reconnects by itself."""
        connection = await self._connect()
        self._tasks = [
            asyncio.create_task(self._run(connection), name="log listener"),
            asyncio.create_task(self._tell(), name="log announcer"),
        ]

    async def close(self) -> None:
        """Disconnects: other processes then consider this one dead."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._notify.close()

    @property
    def hears(self) -> bool:
        """Whether it is connected: otherwise changes by other processes, and the end of Postgres, go unnoticed."""
        return self._connected.is_set()

    @property
    def alone(self) -> bool:
        """Whether no other process shares the log."""
        return self._alone

    async def connected(self) -> None:
        """Returns when it is connected."""
        await self._connected.wait()

    def tell_ends(self, ends: Mapping[int, int]) -> None:
        """Tells the others soon that partitions have grown. What comes while a message is under way forms the next."""
        if not self._alone:
            self._untold.update(ends)
            self._has_untold.set()

    @staticmethod
    async def tell_generation(connection: Connection, group_id: int, generation: int) -> None:
        """Tells the others a group's generation when the current transaction commits."""
        await connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, f"group {group_id}:{generation}"))

    async def _connect(self) -> Connection:
        async with reach("listen to other processes"):
            connection = await self._database.dedicated()
            try:
                connection.add_notify_handler(lambda notify: self._unheard.append(notify.payload))
                # A new number each time: the server may not have noticed yet that the old connection ended.
                self.process = secrets.randbelow(2**31)
                await connection.execute("SET synchronous_commit = off")  # Nothing here needs the disk.
                await connection.execute("SELECT pg_advisory_lock(%s, %s)", (_LOCK_CLASS, self.process))
                await connection.execute(f"LISTEN {_CHANNEL}")
                await connection.execute("SELECT pg_notify(%s, 'hello')", (_CHANNEL,))
            except BaseException:
                await connection.close()
                raise
        self._alone = False
        self._connected.set()
        return connection

    async def _run(self, connection: Connection) -> None:
        delay_seconds = MIN_RECONNECT_SECONDS
        while True:
            try:
                await self._serve(connection)
            except Exception as error:
                _logger.warning("log.listener_lost", error=str(error), error_type=type(error).__name__)
            finally:
                self._connected.clear()
                await connection.close()
            self._listener.lost()
            while not self._connected.is_set():
                await asyncio.sleep(delay_seconds)
                try:
                    connection = await self._connect()
                    delay_seconds = MIN_RECONNECT_SECONDS
                except _FAILURES:
                    delay_seconds = min(2 * delay_seconds, MAX_RECONNECT_SECONDS)
            self._listener.lost()  # Again, because what was read in between may have changed.

    async def _serve(self, connection: Connection) -> None:
        """Listens, and looks from time to time, until the connection fails."""
        loop = asyncio.get_running_loop()
        look_at = looked_at = thorough_at = loop.time()
        while True:
            if (now := loop.time()) >= look_at:
                thorough = now >= thorough_at
                async with reach("look at what other processes do"):
                    if thorough:
                        thorough_at = now + self._pulse_seconds
                        self._alone = await _count_processes(connection) == 1
                    await self._listener.look(connection, thorough=thorough)
                looked_at = now
            look_at = looked_at + (self._pulse_seconds if self._alone else min(WATCH_SECONDS, self._pulse_seconds))
            await self._listen(connection, look_at - loop.time())

    async def _listen(self, connection: Connection, seconds: float) -> None:
        """Listens for `seconds`, or until a process joins, which calls for a look. Raises what ends the connection.

        Uses libpq, in a quarter of the time of psycopg's `notifies`: each commit of any process is a message to all.
        """
        loop, socket = asyncio.get_running_loop(), connection.fileno()
        self._resting = loop.create_future()
        timer = loop.call_later(max(0.0, seconds), self._rest)
        loop.add_reader(socket, self._read, connection.pgconn)
        try:
            while self._unheard:
                self._hear(self._unheard.popleft())
            self._read(connection.pgconn)  # What came right after an answer no longer makes the socket readable.
            await self._resting
        finally:
            timer.cancel()
            loop.remove_reader(socket)

    def _read(self, wire: PGconn) -> None:
        try:
            wire.consume_input()
            while notify := wire.notifies():
                self._hear(notify.extra.decode())
        except Exception as error:
            self._rest(error)

    def _rest(self, error: Exception | None = None) -> None:
        """Stops listening."""
        if self._resting.done():
            return
        if error is None:
            self._resting.set_result(None)
        else:
            self._resting.set_exception(error)

    def _hear(self, message: str) -> None:
        match message.split():
            case ["ends", *ends]:
                self._listener.heard_ends(dict(_pair(end) for end in ends))
            case ["group", generation]:
                self._listener.heard_generation(*_pair(generation))
            case _:  # A process has joined.
                self._alone = False
                self._rest()

    async def _tell(self) -> None:
        while True:
            await self._has_untold.wait()
            self._has_untold.clear()
            ends, self._untold = list(self._untold.items()), {}
            # Processes that miss the message find out at the next pulse. It is sent after the commit and not within it,
            # because commits that notify wait for each other's disk writes.
            with contextlib.suppress(*_FAILURES):
                async with reach("tell other processes"):
                    for first in range(0, len(ends), _ENDS_A_MESSAGE):
                        message = " ".join(f"{key}:{end}" for key, end in ends[first : first + _ENDS_A_MESSAGE])
                        await self._notify.run((_CHANNEL.encode(), f"ends {message}".encode()))


async def _count_processes(connection: Connection) -> int:
    row = await (await connection.execute("SELECT count(*) FROM log.processes")).fetchone()
    return row[0] if row else 0


def _pair(text: str) -> tuple[int, int]:
    key, value = text.split(":")
    return int(key), int(value)
