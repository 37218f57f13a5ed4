"""`agentshell memory export` and `import`, as people run them: real processes and real files."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.contract.memory.caller import GUIDE, USER, Caller, said
from tests.contract.memory.conftest import CONFIG
from tests.contract.serving import member

from agentshell.db.database import Database
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.mesh.call import Principal
from kfm.memory.v1 import memory_service_pb2 as pb
from kfm.memory.v1 import memory_service_pb2_grpc

_COMMAND_SECONDS = 90.0

Command = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def served(database: Database, tmp_path: Path) -> AsyncGenerator[tuple[Callable[[str], Caller], Command]]:
    """A service: makes callers by tenant, and runs commands against it for a tenant."""
    memory = MemoryService(CONFIG, database, await PgvectorStore.open(database))
    async with member() as made:
        made.server.add(
            "kfm.memory.v1.MemoryService",
            lambda to: memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(memory, to),
        )

        async def run(tenant_id: str, *arguments: str) -> tuple[int, str, str]:
            key_file = tmp_path / f"{tenant_id}.key"
            key_file.write_text(made.keyring.create(tenant_id, "ann"))
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGENTSHELL_")}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agentshell.cli", "memory", *arguments),
                *("--address", made.server.address, "--key-file", str(key_file), "--data-dir", str(tmp_path)),
                stdout=PIPE,
                stderr=PIPE,
                env=inherited,
            )
            try:
                async with asyncio.timeout(_COMMAND_SECONDS):
                    out, err = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
            return await process.wait(), out.decode(), err.decode()

        async with await made.start() as channel:
            stub = memory_service_pb2_grpc.MemoryServiceStub(channel)
            yield lambda tenant: Caller(stub, made.keyring.mint(Principal(tenant, "ann"))), run


async def test_a_copy_is_written_goes_on_where_it_was_cut_and_is_brought_in_once(
    served: tuple[Callable[[str], Caller], Command], tmp_path: Path
) -> None:
    caller, run = served
    acme, globex = caller("acme"), caller("globex")
    await acme.write(USER, a="tea", b="milk")
    await acme.write(GUIDE, c="sugar")
    await acme(pb.AppendMessagesRequest(session_id="s", messages=[said("1"), said("2")], request_id="1", user_id="ann"))
    file = tmp_path / "copy"

    assert await run("acme", "export", str(file)) == (0, "3 records, 2 messages\n", "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = file.read_bytes()
    code, _, err = await run("acme", "export", str(file))
    assert (code, "is already complete" in err, file.read_bytes()) == (2, True, whole)

    file.write_bytes(whole[: len(whole) // 2])
    code, _, err = await run("acme", "export", str(file), "--user", "ann")
    assert (code, "started with other options" in err) == (2, True)
    code, _, err = await run("globex", "import", str(file))
    assert (code, "is cut short" in err, await globex.ids(USER)) == (1, True, [])
    assert await run("acme", "export", str(file)) == (0, "3 records, 2 messages\n", "")
    assert file.read_bytes() == whole

    assert await run("globex", "import", str(file)) == (
        0,
        "3 records, 2 messages\nalready there: 0 records, 0 messages\n",
        "",
    )
    assert [each.item for each in await globex.export(everything=True)] == [
        each.item for each in await acme.export(everything=True)
    ]


async def test_a_copy_of_a_user_has_only_that_and_a_part_of_a_copy_can_be_brought_in(
    served: tuple[Callable[[str], Caller], Command], tmp_path: Path
) -> None:
    caller, run = served
    await caller("acme").write(USER, a="tea", b="milk")
    await caller("acme").write(GUIDE, c="sugar")
    file = tmp_path / "copy"
    assert (await run("acme", "export", str(file), "--user", "ann"))[1] == "2 records, 0 messages\n"
    file.write_bytes(file.read_bytes()[:-1])
    assert (await run("globex", "import", str(file), "--partial"))[0] == 0
    assert await caller("globex").ids(USER) == ["a", "b"]
    code, out, err = await run("acme", "import", str(tmp_path / "acme.key"))
    assert (code, out, "not a copy of memory" in err, "Traceback" in err) == (1, "", True, False)
