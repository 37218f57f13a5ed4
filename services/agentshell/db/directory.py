"""The directory of the bundled Postgres: who owns it, and whether an earlier server still runs in it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_PREDECESSOR_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.02
_MAX_TAIL_BYTES = 4096
_MAX_TAIL_LINES = 12
_MAX_LOG_BYTES = 8 * 1024 * 1024


class Directory:
    """`data_dir/postgres`, owned by one process at a time. The kernel drops its two file locks when their holders end.

    The owning process holds `owner.lock`. Every process of its Postgres inherits `server.lock`, so it is free only once
    all of them are gone, however they ended. Process ids decide nothing, because they are reused.
    """

    def __init__(self, path: Path, owner_lock: int, server_lock: int) -> None:
        self.path = path
        self.cluster = path / "data"
        self.socket = path / "socket"
        self.log = path / "postgres.log"
        self.server_lock = server_lock
        self._owner_lock = owner_lock

    @classmethod
    def claim(cls, data_dir: Path) -> Directory:
        """Makes this process the owner. Raises DATA_DIRECTORY_IN_USE if another process is, OSError if it cannot."""
        path = data_dir.absolute() / "postgres"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            owner_lock = _open(path / "owner.lock")
            opened.callback(os.close, owner_lock)
            server_lock = _open(path / "server.lock")
            opened.callback(os.close, server_lock)
            if not _try_lock(owner_lock):
                pid = os.pread(owner_lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise AgentShellError(
                    error_pb2.ERROR_REASON_DATA_DIRECTORY_IN_USE,
                    f"{data_dir} belongs to the running process {pid}: use or stop that, or choose another directory",
                    metadata={"path": str(data_dir), "pid": pid},
                )
            os.ftruncate(owner_lock, 0)
            os.pwrite(owner_lock, f"{os.getpid()}\n".encode(), 0)
            opened.pop_all()
        return cls(path, owner_lock, server_lock)

    async def wait_for_predecessor(self) -> None:
        """Waits at most a minute until no process of an earlier Postgres is left, and takes `server.lock`."""
        os.close(self.server_lock)  # An earlier Postgres of ours holds its lock through the same open file.
        self.server_lock = _open(self.path / "server.lock")
        try:
            async with asyncio.timeout(_PREDECESSOR_TIMEOUT_SECONDS):
                while not _try_lock(self.server_lock):  # noqa: ASYNC110 - a file lock does not announce when it is free
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise AgentShellError(
                error_pb2.ERROR_REASON_DATA_DIRECTORY_IN_USE,
                f"an earlier Postgres in {self.path} has not ended within {_PREDECESSOR_TIMEOUT_SECONDS:.0f} s: "
                f"`fuser {self.path / 'server.lock'}` names its processes; see {self.log}, and try again",
                metadata={"path": str(self.path)},
                cause=error,
            ) from error

    def clear_leftovers(self, socket: Path) -> None:
        """Removes the files that a killed server left in the cluster and its socket's directory; rotates a large log.

        Call it while holding `server.lock`, which proves that no Postgres of ours is running. A leftover lock file
        contains a process id; if that has been reused, Postgres refuses to start. Postgres' own shared-memory check
        still guards the cluster against a server that somebody started by hand.
        """
        for leftover in (self.cluster / "postmaster.pid", *socket.glob(".s.PGSQL.*")):
            leftover.unlink(missing_ok=True)
        if self.log_size() > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))

    @contextlib.contextmanager
    def opened_log(self) -> Generator[int]:
        """Opens Postgres' log for appending."""
        descriptor = _open(self.log, os.O_APPEND)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def log_size(self) -> int:
        """Returns the size of Postgres' log in bytes."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_tail(self, start: int) -> str:
        """Returns the last lines of Postgres' log that come after its first `start` bytes."""
        with self.log.open("rb") as log:
            log.seek(max(start, log.seek(0, os.SEEK_END) - _MAX_TAIL_BYTES))
            lines = log.read(_MAX_TAIL_BYTES).decode(errors="replace").splitlines()
        return "\n".join(lines[-_MAX_TAIL_LINES:]) or "(empty)"

    def release(self) -> None:
        """Releases the directory."""
        os.close(self.server_lock)
        os.close(self._owner_lock)


def _open(path: Path, flags: int = 0) -> int:
    # Follows no link: when we are root, the directory may belong to another user.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
