"""A mesh on what it takes for two machines: each has its own data directory, and they share only TLS."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.certificates import Authority
from tests.ports import free_port

from agentshell.mesh.credentials import Keyring

_SECONDS = 120.0
_QUESTION = "What happens if the process is killed during a turn?"
_AGENTSHELL = str(Path(sys.executable).with_name("agentshell"))
_BUF = str(Path(sys.executable).with_name("buf"))


async def _run(*command: str, environment: Mapping[str, str]) -> tuple[int | None, str]:
    """Runs a command to its end and returns its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=asyncio.subprocess.STDOUT, env=environment
    )
    async with asyncio.timeout(_SECONDS):
        said, _ = await process.communicate()
    return process.returncode, said.decode()


@asynccontextmanager
async def _up(*services: str, environment: Mapping[str, str]) -> AsyncGenerator[str]:
    """Runs services and yields the address at which they serve clients."""
    process = await asyncio.create_subprocess_exec(_AGENTSHELL, "up", *services, stdout=PIPE, env=environment)
    try:
        async with asyncio.timeout(_SECONDS):
            yield await _ready(process)
    finally:
        process.terminate()
        assert process.stdout is not None
        async with asyncio.timeout(_SECONDS):
            await process.stdout.read()
            assert await process.wait() == 0


async def _ready(process: Process) -> str:
    assert process.stdout is not None
    address = ""
    while line := (await process.stdout.readline()).decode():
        if line.startswith("gRPC"):
            address = line.split()[1]
        if line.startswith("ready"):
            return address
    raise AssertionError(f"it ended with {await process.wait()}")


async def test_two_machines_and_their_clients_meet_over_tls_alone(tmp_path: Path, database_url: str) -> None:
    authority = Authority(tmp_path / "authority")
    certificate_file, key_file = authority.issue("mesh", "localhost")
    mesh_address = f"localhost:{free_port()}"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AGENTSHELL_")}
    common = plain | {
        "AGENTSHELL_DATABASE__URL": database_url,
        "AGENTSHELL_AUTH__KEYS_FILE": str(tmp_path / "keys.json"),
        "AGENTSHELL_AUTH__MESH_KEY_FILE": str(tmp_path / "mesh.key"),
        "AGENTSHELL_TLS__CERTIFICATE_FILE": str(certificate_file),
        "AGENTSHELL_TLS__KEY_FILE": str(key_file),
        "AGENTSHELL_TLS__CA_FILE": str(authority.ca_file),
        "AGENTSHELL_SERVER__ADDRESS": "127.0.0.1:0",
        "AGENTSHELL_SERVER__HTTP_ADDRESS": "127.0.0.1:0",
    }
    one = common | {
        "AGENTSHELL_DATA_DIR": str(tmp_path / "one"),
        "AGENTSHELL_SERVER__MESH_ADDRESS": mesh_address.replace("localhost", "127.0.0.1"),
    }
    peers = ", ".join(f"{name} = '{mesh_address}'" for name in ("memory", "provider", "personality", "tool"))
    two = common | {"AGENTSHELL_DATA_DIR": str(tmp_path / "two"), "AGENTSHELL_PEERS": f"{{{peers}}}"}
    key = tmp_path / "key"
    key.write_text(Keyring(tmp_path / "keys.json", tmp_path / "mesh.key").create("acme", "ann"))
    async with (
        _up("memory", "provider", "personality", "tool", environment=one),
        _up("runtime", "gateway", environment=two) as listening,
    ):
        address = listening.replace("127.0.0.1", "localhost")
        reach = ("--address", address, "--key-file", str(key), "--data-dir", str(tmp_path / "nowhere"))
        believing = (_AGENTSHELL, "--ca", str(authority.ca_file))
        await _until_it_knows(believing, reach, mesh_address, plain)
        code, said = await _run(*believing, "ask", _QUESTION, *reach, environment=plain)
        assert (code, "[1]" in said) == (0, True), said
        code, said = await _run(_AGENTSHELL, "ask", _QUESTION, *reach, environment=plain)
        assert (code, "Does it speak TLS?" in said) == (3, True), said
        code, said = await _run(_AGENTSHELL, "ask", _QUESTION, environment=two)
        assert (code, "[1]" in said) == (0, True), "on its own machine a mesh is called by its socket"
        code, said = await _run(_AGENTSHELL, "dlq", "list", "--address", address, environment=two)
        assert code == 0, said
        code, said = await _run(_AGENTSHELL, "doctor", environment=two)
        assert code == 0, said
        assert "ok  TLS           127.0.0.1:0 as localhost until 2120-01-01" in said
        header = f"authorization: Bearer {key.read_text()}"
        where = f"https://{address}/kfm.turn.v1.TurnService/ListTurns"
        code, said = await _run(
            _BUF,
            "curl",
            "--protocol",
            "grpc",
            "--cacert",
            str(authority.ca_file),
            "-H",
            header,
            "-d",
            "{}",
            where,
            environment=plain,
        )
        assert (code, "turnId" in said) == (0, True), said


async def _until_it_knows(
    believing: tuple[str, ...], reach: tuple[str, ...], mesh_address: str, environment: Mapping[str, str]
) -> None:
    """Waits until the documents are in memory, as told by the personality service at its machine's mesh address."""
    there = ("--address", mesh_address, *reach[2:])
    async with asyncio.timeout(_SECONDS):
        while "READY" not in (await _run(*believing, "packs", "list", "--json", *there, environment=environment))[1]:
            pass
