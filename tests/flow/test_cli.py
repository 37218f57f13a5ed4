"""The command, as people run it: real processes, their output and their exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf import json_format
from tests.certificates import Authority
from tests.flow.conftest import environment_for
from tests.flow.mesh import Mesh
from tests.flow.test_inputs import asks, waits
from tests.ports import free_port
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Fault

from agentshell.db.database import Database
from agentshell.log.dead_letter import SUFFIX
from agentshell.log.log import Record
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import ids
from agentshell.mesh.config import Config
from agentshell.mesh.data_directory import key_file
from agentshell.turn.envelope import TURNS
from agentshell.turn.state import is_over
from kfm.admin.v1.admin_service_pb2 import DeadLetter
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT
from kfm.turn.v1.turn_event_pb2 import RecordedTurnEvent, TurnEvent, TurnUpdate
from kfm.turn.v1.turn_pb2 import PRIORITY_HIGH, TURN_STATE_COMPLETED, TURN_STATE_RUNNING, Turn, TurnState
from xenocomm import Client, Transcript

_COMMAND_SECONDS = 90.0
_QUESTION = "How do I cancel a turn?"
_DIRECT_TURN = ["TurnRequested", "PlanCreated", *["StepScheduled", "StepSucceeded"] * 2, "TurnCompleted"]


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished command: its exit code and output."""

    code: int
    out: str
    err: str

    def messages(self, kind: Callable[[], Any]) -> list[Any]:
        return [json_format.Parse(line, kind()) for line in self.out.splitlines()]


async def start(*arguments: str, data_dir: Path, environment: Mapping[str, str] | None = None) -> Process:
    """Starts a command on a data directory, with free ports."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTSHELL_", "OPENAI_"))}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentshell.cli", *arguments),
        stdout=PIPE,
        stderr=PIPE,
        env={
            **inherited,
            "AGENTSHELL_DATA_DIR": str(data_dir),
            "AGENTSHELL_SERVER__ADDRESS": "127.0.0.1:0",
            "AGENTSHELL_SERVER__HTTP_ADDRESS": "127.0.0.1:0",
            **(environment or {}),
        },
    )


async def agentshell(*arguments: str, data_dir: Path, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs a command to its end."""
    return await ended_of(await start(*arguments, data_dir=data_dir, environment=environment))


async def ended_of(process: Process) -> Ended:
    try:
        async with asyncio.timeout(_COMMAND_SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return Ended(await process.wait(), out.decode(), err.decode())


async def listed(mesh: Mesh, *options: str, state: TurnState.ValueType) -> list[Turn]:
    """Lists turns once all are in a state: the index may lag a moment behind."""
    async with asyncio.timeout(_COMMAND_SECONDS):
        while True:
            ended = await agentshell("turns", "list", *options, "--json", data_dir=mesh.data_dir)
            turns: list[Turn] = ended.messages(Turn)
            if turns and all(turn.state == state for turn in turns):
                return turns


def _left_in(directory: str) -> list[Path]:
    return list(Path(directory).iterdir())


def _name(event: TurnEvent) -> str:
    return event.header.type.rpartition(".")[2]


@asynccontextmanager
async def _database(mesh: Mesh) -> AsyncGenerator[Database]:
    """Opens the bundled Postgres of a mesh."""
    directory = quote(str(mesh.data_dir.absolute() / "postgres" / "socket"), safe="")
    database = await Database.open(f"postgresql://postgres@/postgres?host={directory}", 2)
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture(scope="module")
async def embedded(tmp_path_factory: pytest.TempPathFactory, vendor_process: OpenAIChatServer) -> AsyncGenerator[Mesh]:
    """What `agentshell up` runs with only a vendor configured: everything, with the bundled Postgres."""
    mesh = Mesh(tmp_path_factory.mktemp("cli"), "", environment_for(vendor_process), separate=False)
    await mesh.start()
    async with Client.connect(mesh.endpoints.address, key_file(mesh.data_dir).read_text().strip()) as client:
        async with asyncio.timeout(_COMMAND_SECONDS):
            while "[1]" not in (await client.ask(_QUESTION)).text:  # Until the documents are in memory.
                pass
    yield mesh
    await mesh.stop()


async def test_ask_prints_the_answer_and_nothing_else(embedded: Mesh) -> None:
    ended = await agentshell("ask", _QUESTION, data_dir=embedded.data_dir)
    assert (ended.code, ended.err) == (0, "")
    assert "agentshell turns cancel" in ended.out
    assert ended.out.count("Sources:") == 1


async def test_ask_prints_json_and_goes_on_in_its_session(embedded: Mesh) -> None:
    turn_ids: list[str] = []
    for _ in range(2):
        ended = await agentshell("ask", _QUESTION, "--session", "talk", "--json", data_dir=embedded.data_dir)
        updates: list[TurnUpdate] = ended.messages(TurnUpdate)
        assert (ended.code, ended.err) == (0, "")
        assert [_name(update.event) for update in updates if update.HasField("event")] == _DIRECT_TURN
        turn_ids.insert(0, updates[0].event.turn_id)
    turns = await listed(embedded, "--session", "talk", state=TURN_STATE_COMPLETED)
    assert [turn.turn_id for turn in turns] == turn_ids


async def test_a_turn_can_be_listed_shown_and_watched(embedded: Mesh) -> None:
    asked = await agentshell("ask", _QUESTION, data_dir=embedded.data_dir)
    [turn] = await listed(embedded, "--limit", "1", state=TURN_STATE_COMPLETED)
    table = await agentshell("turns", "list", data_dir=embedded.data_dir)
    assert turn.turn_id in table.out
    assert "COMPLETED" in table.out
    shown = await agentshell("turns", "show", turn.turn_id, data_dir=embedded.data_dir)
    rows = shown.out.splitlines()[-len(_DIRECT_TURN) :]
    assert [row.split()[0] for row in rows] == _DIRECT_TURN
    assert [row.split()[1:4] for row in rows[3:6:2]] == [
        ["retrieve", "memory", "lexical"],
        ["answer", "local", "extract"],
    ]
    history = await agentshell("turns", "show", turn.turn_id, "--json", data_dir=embedded.data_dir)
    assert [_name(recorded.event) for recorded in history.messages(RecordedTurnEvent)] == _DIRECT_TURN
    watched = await agentshell("turns", "watch", turn.turn_id, data_dir=embedded.data_dir)
    assert (watched.code, watched.out) == (0, asked.out)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ask", "x", "--provider", "openai"], 1, "PROVIDER_KEY_INVALID"),
        (["ask", "x", "--personality", "nobody"], 1, "PERSONALITY_NOT_FOUND"),
        (["turns", "show", "nothing"], 1, "TURN_NOT_FOUND"),
        (["turns", "list", "--session", "nothing"], 1, "SESSION_NOT_FOUND"),
        (["dlq", "show", "agent.turns/0/999"], 1, "DEAD_LETTER_NOT_FOUND"),
        (["ask", "x", "--key-file", "nothing"], 2, "--key-file"),
        (["ask"], 2, "Missing argument"),
        (["ask", "x", "--address", "127.0.0.1:1"], 3, "agentshell up"),
        (["dlq", "list", "--address", "127.0.0.1:1"], 3, "agentshell up"),
    ],
)
async def test_what_fails_says_why_and_prints_no_answer(
    embedded: Mesh, vendor: OpenAIChatServer, arguments: list[str], code: int, message: str
) -> None:
    vendor.fault = Fault(status=401)
    ended = await agentshell(*arguments, data_dir=embedded.data_dir)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


async def test_a_turn_outlives_its_caller_until_it_is_cancelled(embedded: Mesh, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(stall_after=2)
    asking = await start("ask", "Ready?", "--provider", "openai", "--json", data_dir=embedded.data_dir)
    assert asking.stdout is not None
    async with asyncio.timeout(_COMMAND_SECONDS):
        turn_id = json_format.Parse(await asking.stdout.readline(), TurnUpdate()).event.turn_id
        while b'"delta"' not in await asking.stdout.readline():
            pass
    asking.send_signal(signal.SIGINT)
    ended = await ended_of(asking)
    assert ended.code == 130
    assert ended.err == f"\nthe turn is still running: `agentshell turns watch {turn_id}`\n"
    running = await listed(embedded, "--state", "running", state=TURN_STATE_RUNNING)
    assert turn_id in [turn.turn_id for turn in running]
    cancelled = await agentshell("turns", "cancel", turn_id, "--message", "enough", data_dir=embedded.data_dir)
    assert (cancelled.code, cancelled.err) == (0, "")
    watched = await agentshell("turns", "watch", turn_id, data_dir=embedded.data_dir)
    assert (watched.code, watched.out) == (1, "")
    assert "CANCELLED" in watched.err
    again = await agentshell("turns", "cancel", turn_id, data_dir=embedded.data_dir)
    assert again.code == 1
    assert "TURN_STATE" in again.err


async def test_a_question_is_shown_answered_and_its_turn_forked(embedded: Mesh) -> None:
    async with Client.connect(embedded.endpoints.address, key_file(embedded.data_dir).read_text().strip()) as client:
        turn_id = await waits(client, asks(choices=["yes", "no"]))
    for arguments in (["turns", "show", turn_id], ["turns", "answer", turn_id, "ask", "maybe"]):
        ended = await agentshell(*arguments, data_dir=embedded.data_dir)
        assert ("one of: yes | no" in ended.out) or ("is not one of" in ended.err and ended.code == 1)
    answered = await agentshell("turns", "answer", turn_id, "ask", "yes", data_dir=embedded.data_dir)
    assert (answered.code, answered.err) == (0, "")
    watched = await agentshell("turns", "watch", turn_id, data_dir=embedded.data_dir)
    assert (watched.code, watched.out) == (0, "did: yes\n")
    assert f"to answer: agentshell turns answer {turn_id} ask TEXT" in watched.err
    forked = await agentshell("turns", "fork", turn_id, "--from", "ask", data_dir=embedded.data_dir)
    assert (forked.code, forked.out) == (0, "did: yes\n")
    assert forked.err.startswith("turn ")
    options = ("--text", "Otherwise?", "--strategy", "direct", "--priority", "high", "--json")
    forked = await agentshell("turns", "fork", turn_id, *options, data_dir=embedded.data_dir)
    [requested, *_] = forked.messages(TurnUpdate)
    assert requested.event.turn_requested.priority == PRIORITY_HIGH
    assert forked.messages(TurnUpdate)[-1].event.turn_completed.output.role == ROLE_ASSISTANT


async def test_a_new_key_opens_a_tenant_of_its_own(embedded: Mesh) -> None:
    made = await agentshell("keys", "create", "acme", "--principal", "ann", data_dir=embedded.data_dir)
    environment = {"AGENTSHELL_API_KEY": made.out.strip()}
    listed = await agentshell("turns", "list", "--json", data_dir=embedded.data_dir, environment=environment)
    assert (listed.code, listed.out) == (0, "")
    environment = {"AGENTSHELL_API_KEY": "ask_made_up"}
    refused = await agentshell("turns", "list", "--json", data_dir=embedded.data_dir, environment=environment)
    assert refused.code == 1
    assert "CREDENTIAL_INVALID" in refused.err


async def test_an_operator_finds_replays_and_drops_what_cannot_be_decoded(embedded: Mesh) -> None:
    async def buried(offset: int) -> DeadLetter:
        """Returns the only dead letter listed, once the log has it."""
        async with asyncio.timeout(_COMMAND_SECONDS):
            while not await log.read(TURNS + SUFFIX, ack.partition, offset, 1, 1.0):
                pass
        [letter] = (await agentshell("dlq", "list", "--json", data_dir=embedded.data_dir)).messages(DeadLetter)
        return letter

    async with _database(embedded) as database:
        log = await PostgresLog.open(database)
        try:
            [ack] = await log.append(TURNS, [Record("default/poison", ids.record_id("poison"), b"\xff no event")])
            letter = await buried(0)
            shown = await agentshell("dlq", "show", letter.dead_letter_id, data_dir=embedded.data_dir)
            assert (shown.code, shown.err) == (0, "")
            assert all(said in shown.out for said in ("undecodable", "default/poison", b"\xff no event".hex(" ")))
            replayed = await agentshell("dlq", "replay", letter.dead_letter_id, data_dir=embedded.data_dir)
            assert replayed == Ended(0, f"{letter.dead_letter_id} replayed\n", "")
            again = await buried(3)  # After its claim and settlement: it still cannot be decoded.
            dropped = await agentshell("dlq", "drop", again.dead_letter_id, data_dir=embedded.data_dir)
            assert dropped == Ended(0, f"{again.dead_letter_id} dropped\n", "")
            assert await agentshell("dlq", "list", "--json", data_dir=embedded.data_dir) == Ended(0, "", "")
        finally:
            await log.close()


async def test_the_index_of_turns_is_made_again_from_the_log(embedded: Mesh) -> None:
    command = ("turns", "list", "--limit", "10000", "--json")
    async with asyncio.timeout(_COMMAND_SECONDS):  # Once the index has the end of each turn, no more is written to it.
        while not all(map(is_over, (before := await agentshell(*command, data_dir=embedded.data_dir)).messages(Turn))):
            pass
    async with _database(embedded) as database, database.connection() as connection:
        await connection.execute("DELETE FROM gateway.turn")
    assert await agentshell(*command, data_dir=embedded.data_dir) == Ended(0, "", "")
    rebuilt = await agentshell("turns", "rebuild", data_dir=embedded.data_dir)
    assert (rebuilt.code, rebuilt.err) == (0, "")
    after = await agentshell(*command, data_dir=embedded.data_dir)
    assert before.messages(Turn)
    assert after.messages(Turn) == before.messages(Turn)


async def test_doctor_finds_a_running_mesh_well(embedded: Mesh) -> None:
    ended = await agentshell("doctor", data_dir=embedded.data_dir)
    assert ended.code == 0, ended.out
    assert "turn, memory, provider, personality, tool SERVING" in ended.out
    for said in ("the bundled Postgres: 18", "pgvector", "guide 1.0.0, knowledge READY", "accepted", "lexical"):
        assert said in ended.out
    assert "!!" not in ended.out


async def test_doctor_says_how_to_mend_what_is_wrong(tmp_path: Path) -> None:
    missing = {
        "AGENTSHELL_DATABASE__URL": "postgresql://nobody@127.0.0.1:1/none",
        "AGENTSHELL_PROVIDER__DEFAULT": "openai",
        "AGENTSHELL_CONFIG": str(tmp_path / "agentshell.toml"),
    }
    (tmp_path / "agentshell.toml").write_text(
        '[[memory.namespaces]]\nnamespace = "user/"\nembedder = "local/none"\n[memory.local_models]\nnone = "nowhere"\n'
    )
    ended = await agentshell("doctor", data_dir=tmp_path, environment=missing)
    faults = [line.split()[1] for line in ended.out.splitlines() if line.startswith("!!")]
    assert (ended.code, faults) == (1, ["database", "mesh", "embedder", "provider"])
    assert ended.out.count("-> ") == 4
    exposed = await agentshell("doctor", data_dir=tmp_path, environment={"AGENTSHELL_SERVER__ADDRESS": "0.0.0.0:0"})
    assert "--  TLS           none at 0.0.0.0:0: credentials and messages cross the network in the clear" in exposed.out
    files = Authority(tmp_path / "ca").issue("past", "localhost", end=datetime(2021, 1, 1, tzinfo=UTC))
    names = ("AGENTSHELL_TLS__CERTIFICATE_FILE", "AGENTSHELL_TLS__KEY_FILE")
    past = await agentshell("doctor", data_dir=tmp_path, environment=dict(zip(names, map(str, files), strict=True)))
    assert "!!  TLS           127.0.0.1:0 as localhost until 2021-01-01 00:00 UTC: it has expired" in past.out
    wrong = await agentshell("doctor", data_dir=tmp_path, environment={"AGENTSHELL_RUNTIME__MAX_STEPS": "many"})
    assert wrong.code == 1
    assert "runtime.max_steps" in wrong.out


async def test_a_second_up_on_the_same_data_directory_is_refused(embedded: Mesh) -> None:
    ended = await agentshell("up", data_dir=embedded.data_dir)
    assert (ended.code, ended.out) == (1, "")
    [line] = ended.err.splitlines()
    assert f"belongs to the running process {embedded.endpoints.pid}" in line


async def test_a_data_directory_that_cannot_be_made_stops_up_with_the_key_that_names_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = await agentshell("up", data_dir=tmp_path / "file/data")
    assert (ended.code, ended.out) == (1, "")
    assert f"{tmp_path / 'file/data'}: Not a directory; set configuration key 'data_dir'" in ended.err


async def test_an_unknown_key_stops_up_with_the_key_its_value_and_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "agentshell.toml"
    file.write_text("[runtime]\nmax_stepz = 7\n")
    ended = await agentshell("up", "--config", str(file), data_dir=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    [line] = ended.err.splitlines()
    assert all(said in line for said in ("runtime.max_stepz", "'7'", str(file), "agentshell config"))


async def test_config_prints_every_key_and_no_password(tmp_path: Path) -> None:
    environment = {"AGENTSHELL_DATABASE__URL": "postgresql://me:sesame@db/agents"}
    ended = await agentshell("config", data_dir=tmp_path, environment=environment)
    assert ended.code == 0
    assert "postgresql://me:***@db/agents" in ended.out
    assert "sesame" not in ended.out
    printed = {line.split()[0] for line in ended.out.splitlines()[1:] if line[:1].strip()}
    sections = {section: set(getattr(Config(), section).model_dump()) for section in ("server", "runtime", "telemetry")}
    assert {f"{section}.{key}" for section, keys in sections.items() for key in keys} <= printed
    assert "provider.breaker.failures" in printed


async def test_up_stops_at_sigterm_and_starts_again_with_all_turns() -> None:
    with tempfile.TemporaryDirectory(prefix="as-") as name:
        mesh = Mesh(Path(name), "", {}, separate=False)
        await mesh.start()
        asked = await agentshell("ask", _QUESTION, data_dir=mesh.data_dir)
        assert asked.code == 0
        await mesh.stop()
        unreachable = await agentshell("turns", "list", data_dir=mesh.data_dir)
        assert (unreachable.code, unreachable.out) == (3, "")
        await mesh.start()
        assert len(await listed(mesh, state=TURN_STATE_COMPLETED)) == 1
        await mesh.stop()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_client_reads_on_when_the_mesh_is_restarted_within_an_answer(
    vendor: OpenAIChatServer, end: signal.Signals
) -> None:
    address = f"127.0.0.1:{free_port()}"
    environment = {"AGENTSHELL_SERVER__ADDRESS": address, "AGENTSHELL_SERVER__DRAIN_SECONDS": "0.2"}
    vendor.fault = Fault(stall_after=2)
    with tempfile.TemporaryDirectory(prefix="as-") as name:
        mesh = Mesh(Path(name), "", environment_for(vendor) | environment, separate=False)
        await mesh.start()
        async with Client.connect(address, key_file(mesh.data_dir).read_text().strip()) as client:
            transcript, seen = Transcript(), list[TurnUpdate]()
            async for update in client.run("Are you ready?", provider="openai"):
                transcript.add(update)
                seen.append(update)
                if update.HasField("delta") and vendor.fault == Fault(stall_after=2):
                    assert transcript.text == "Ready "
                    await (mesh.stop() if end is signal.SIGTERM else mesh.kill("gateway"))
                    vendor.fault = Fault()
                    await mesh.start()
            assert transcript.text == "Ready to serve."
            turn_id = seen[0].event.turn_id
            again = [update async for update in client.watch(turn_id)]
            assert [u.event.header.event_id for u in seen if u.HasField("event")] == [
                u.event.header.event_id for u in again if u.HasField("event")
            ]
            assert len({update.delta.run_id for update in seen if update.HasField("delta")}) == 2
        await mesh.stop()


async def test_the_demo_runs_two_turns_and_leaves_nothing_behind() -> None:
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        ended = await agentshell("demo", data_dir=Path(directory) / "unused", environment={"TMPDIR": directory})
        assert _left_in(directory) == []
    assert (ended.code, ended.err) == (0, "")
    first = [line.split()[0] for line in ended.out.splitlines() if line.strip()]
    assert [word for word in first if word in _DIRECT_TURN] == _DIRECT_TURN * 2
    assert "the turn is not lost" in ended.out
