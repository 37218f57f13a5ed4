"""The bundled Postgres: one process owns a data directory and runs the server in it.

Everything is in `data_dir/postgres`: the locks, the cluster (`data`), the socket (`socket`) and Postgres' log.

Postgres is our child and gets SIGINT (its fast shutdown) from the kernel when the thread that started it ends, so call
`start` from a thread that lives as long as the process. It runs in a session of its own, so ctrl-C reaches only us.

When we are root, Postgres runs as another user (see `binaries.account`), who cannot traverse a closed ancestor such as
/root. The child therefore inherits its two directories as open descriptors and names them /proc/self/fd/N, which needs
no permission on any ancestor. The data stays where it was configured to be, and no existing directory's mode changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote

import psycopg
import structlog

from agentshell.db import binaries
from agentshell.db.directory import Directory
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_log = structlog.get_logger("agentshell.db")

_START_TIMEOUT_SECONDS = 120.0  # Crash recovery replays about `max_wal_size` at most.
_STOP_TIMEOUT_SECONDS = 30.0
_ABORT_TIMEOUT_SECONDS = 5.0
_POLL_SECONDS = 0.01
# The delay before a restart: it doubles each time, until Postgres has run for `_STABLE_SECONDS`.
_FIRST_RESTART_SECONDS, _LAST_RESTART_SECONDS = 0.1, 30.0
_STABLE_SECONDS = 60.0
_MAX_SOCKET_PATH_BYTES = 107
_PORT = 5432  # Not a TCP port: it is part of the socket's name.
_USER = "postgres"
_CHILD = Path(__file__).with_name("child.py")

# Sorts by code point, so that no update of the system's C library invalidates an index; letter classes are Unicode's.
_INITDB_OPTIONS = (
    f"--username={_USER}",
    "--auth-local=trust",
    "--auth-host=reject",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)

_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    # Acknowledged data is on disk.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # Sized for a small machine, shared with the services.
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    "io_method": "sync",
    "jit": "off",
    "max_worker_processes": "4",
    "max_parallel_workers": "2",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",  # Needs more of /dev/shm than a container has.
    "max_wal_senders": "2",  # For pg_basebackup.
    "max_logical_replication_workers": "0",
    "autovacuum_max_workers": "2",
    "autovacuum_worker_slots": "2",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Clients report failed statements; here they would only grow the log and put users' data in it.
    "log_min_messages": "log",
    "log_checkpoints": "off",
}


class PostgresServer:
    """A running Postgres that this process owns; create it with `start`. If it ends by itself, it is restarted.

    `url` is a libpq URL over the unix socket. There is no password, because the socket's directory admits only its
    owner and root.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._account: binaries.Account | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._socket = directory.socket
        self._programs = Path()
        self._keeping: asyncio.Task[None] | None = None
        self._released = False

    @property
    def url(self) -> str:
        return f"postgresql://{_USER}@/postgres?host={quote(str(self._socket), safe='')}&port={_PORT}"

    @classmethod
    async def start(cls, data_dir: Path) -> PostgresServer:
        """Starts the server in `data_dir/postgres`, created if missing, and returns once it accepts connections.

        Takes over from a killed owner: waits for its Postgres to end, then recovers, within three minutes in all.
        Raises DATA_DIRECTORY_IN_USE if another process owns the directory, DATABASE_UNAVAILABLE with the end of
        Postgres' log if it does not come up, CONFIG_INVALID if this machine cannot run it.
        """
        if sys.platform != "linux":
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                "the bundled Postgres needs Linux: set database.url to a Postgres of your own",
                metadata={"key": "database.url", "fix": "postgresql://..."},
            )
        try:
            server = cls(Directory.claim(data_dir))
            try:
                await server._start()
            except BaseException:
                await server.stop()
                raise
        except OSError as error:
            raise AgentShellError(
                error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE,
                f"the bundled Postgres in {data_dir} cannot start: {error}; fix that, or choose another data directory",
                metadata={"path": str(data_dir)},
                cause=error,
            ) from error
        return server

    async def stop(self) -> None:
        """Shuts the server down in at most 40 s, closing its connections, and releases the directory. Idempotent."""
        if self._released:
            return
        self._released = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        try:
            for stop, seconds in (
                (signal.SIGINT, _STOP_TIMEOUT_SECONDS),
                (signal.SIGQUIT, _ABORT_TIMEOUT_SECONDS),
                (signal.SIGKILL, _ABORT_TIMEOUT_SECONDS),
            ):
                if await self._ended_after(stop, seconds):
                    break
        finally:
            self._directory.release()
            if self._socket != self._directory.socket:
                shutil.rmtree(self._socket, ignore_errors=True)

    async def _ended_after(self, stop: signal.Signals, seconds: float) -> bool:
        if self._process is None:
            return True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(stop)
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    async def _start(self) -> None:
        await self._directory.wait_for_predecessor()
        self._account = binaries.account(self._directory.cluster)
        self._programs = await asyncio.to_thread(binaries.find, self._account)
        if not self._directory.cluster.exists():
            await self._initialise(self._programs / "initdb")
        self._socket = self._make_socket_directory()
        log_start = self._directory.log_size()
        self._process = await self._launch()
        await self._until_ready(self._process, log_start)
        self._keeping = asyncio.create_task(self._keep(self._process), name="postgres")

    async def _launch(self) -> asyncio.subprocess.Process:
        self._directory.clear_leftovers(self._socket)
        with _opened(self._directory.cluster) as cluster, _opened(self._socket) as socket:
            settings = _SETTINGS | {"unix_socket_directories": _name(socket)}
            arguments = ["-D", _name(cluster), *(f"--{name}={value}" for name, value in settings.items())]
            return await self._spawn(self._programs / "postgres", arguments, (cluster, socket))

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        """Restarts Postgres whenever it ends, until `stop` cancels this."""
        loop = asyncio.get_running_loop()
        delay_seconds = _FIRST_RESTART_SECONDS
        while True:
            began = loop.time()
            status = await process.wait()
            if loop.time() - began > _STABLE_SECONDS:
                delay_seconds = _FIRST_RESTART_SECONDS
            log = str(self._directory.log)
            _log.error("the bundled Postgres ended; restarting it", status=status, log=log, seconds=delay_seconds)
            await asyncio.sleep(delay_seconds)
            delay_seconds = min(2 * delay_seconds, _LAST_RESTART_SECONDS)
            try:
                await self._directory.wait_for_predecessor()
                process = self._process = await self._launch()
            except (AgentShellError, OSError) as error:
                _log.error("the bundled Postgres cannot be started", detail=str(error))

    async def _initialise(self, initdb: Path) -> None:
        """Creates the cluster atomically."""
        making = self._directory.path / "data.new"
        if making.exists():
            await asyncio.to_thread(shutil.rmtree, making)
        self._make_private(making)
        log_start = self._directory.log_size()
        with _opened(making) as cluster:
            self._process = await self._spawn(initdb, ["-D", _name(cluster), *_INITDB_OPTIONS], (cluster,))
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                status = await self._process.wait()
        except TimeoutError:
            status = None
        if status != 0:
            raise self._failure("initdb failed", log_start)
        self._process = None
        making.rename(self._directory.cluster)
        with _opened(self._directory.path) as directory:
            os.fsync(directory)  # A power cut must not undo the rename: data will be acknowledged under this name.

    async def _spawn(
        self, program: Path, arguments: list[str], descriptors: tuple[int, ...]
    ) -> asyncio.subprocess.Process:
        uid, gid = (self._account.uid, self._account.gid) if self._account else (-1, -1)
        child = [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), str(uid), str(gid), str(program)]
        with self._directory.opened_log() as log:
            return await asyncio.create_subprocess_exec(
                *child,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},  # None of the user's PG* variables.
                pass_fds=(self._directory.server_lock, *descriptors),
            )

    async def _until_ready(self, process: asyncio.subprocess.Process, log_start: int) -> None:
        ended = asyncio.ensure_future(process.wait())
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                while not ended.done():
                    with contextlib.suppress(psycopg.OperationalError):
                        await (await psycopg.AsyncConnection.connect(self.url)).close()
                        return
                    await asyncio.wait([ended], timeout=_POLL_SECONDS)
        except TimeoutError as error:
            what = f"Postgres accepts no connections after {_START_TIMEOUT_SECONDS:.0f} s"
            raise self._failure(what, log_start) from error
        finally:
            ended.cancel()
        raise self._failure(f"Postgres ended with status {process.returncode}", log_start)

    def _make_socket_directory(self) -> Path:
        """Returns the socket's directory: ours, or a temporary one if our path is too long for a socket."""
        directory = self._directory.socket
        if len(os.fsencode(directory / f".s.PGSQL.{_PORT}")) > _MAX_SOCKET_PATH_BYTES:
            directory = Path(tempfile.mkdtemp(prefix="agentshell-"))
            self._give(directory)
        elif not directory.exists():
            self._make_private(directory)
        return directory

    def _make_private(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self._give(directory)

    def _give(self, directory: Path) -> None:
        if self._account:
            os.chown(directory, self._account.uid, self._account.gid, follow_symlinks=False)

    def _failure(self, what: str, log_start: int) -> AgentShellError:
        return AgentShellError(
            error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE,
            f"{what}, in {self._directory.path}; {self._directory.log.name} ends with:\n"
            f"{self._directory.log_tail(log_start)}",
            metadata={"path": str(self._directory.path)},
        )


@contextlib.contextmanager
def _opened(directory: Path) -> Generator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _name(descriptor: int) -> str:
    """Returns the path by which a child that inherits the descriptor names its directory."""
    return f"/proc/self/fd/{descriptor}"
