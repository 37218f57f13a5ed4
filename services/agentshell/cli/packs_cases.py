"""`agentshell packs test`: runs packs' own cases in real turns."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import FAILED, USAGE, ending, fail
from agentshell.cli.options import Address, ConfigFile, DataDir, KeyFile, Model, Provider

if TYPE_CHECKING:
    from agentshell.mesh.config import Config
    from agentshell.personality.cases import Case, Outcome
    from agentshell.personality.pack import Pack
    from xenocomm import Client

_KNOWLEDGE_SECONDS = 60.0
_CALL_SECONDS = 10.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Tested:
    """A pack under test, and its cases by name."""

    folder: Path
    pack: Pack
    cases: Mapping[str, Case]

    @property
    def name(self) -> str:
        """The name that turns use for it."""
        return f"{self.pack.manifest.id}@{self.pack.manifest.version}"


def ask_cases(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="The folders of packs.", show_default=False)],
    provider: Provider = "",
    model: Model = "",
    case: Annotated[list[str] | None, typer.Option(help="Only the case with this name; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long a case may take.")] = 120.0,
    config_file: ConfigFile = None,
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Run the cases in the `tests/*.yaml` of packs. Exits with 1 if an answer is not as expected.

    Starts a mesh of its own, with the configured models and tools, unless --address names one.
    """

    async def run() -> None:
        tested = [_read(folder, case or ()) for folder in folders]
        config = mesh.load_config(config_file, data_dir)
        serving = mesh.connect(config, address, key_file) if address else _here(config, folders)
        async with serving as client:
            failed = [await _test(client, one, provider, model, seconds) for one in tested]
        if any(failed):
            raise typer.Exit(FAILED)

    with ending():
        import uvloop

        uvloop.run(run())


def _read(folder: Path, names: Sequence[str]) -> _Tested:
    from agentshell.personality import cases, files, pack
    from agentshell.personality.yaml_file import PackError

    if not folder.is_dir():
        fail(f"{folder} is not a directory; name the folder of a pack", USAGE)
    try:
        found = files.of_folder(folder.resolve())
        read, all_cases = pack.parse(found), cases.parse(found)
    except PackError as error:
        fail(f"{folder}/{error}", FAILED)
    chosen = {name: case for name, case in all_cases.items() if not names or name in names}
    if not chosen:
        there = ", ".join(all_cases) or "none"
        fail(f"{folder} has no such case in {cases.DIRECTORY}/*.yaml; it has: {there}", USAGE)
    return _Tested(folder, read, chosen)


@contextlib.asynccontextmanager
async def _here(configured: Config, folders: Sequence[Path]) -> AsyncGenerator[Client]:
    """Starts a mesh with these packs alone. Its data is its own, and is deleted at the end."""
    from agentshell.mesh.config import Config, PersonalityConfig, ServerConfig, TelemetryConfig
    from agentshell.mesh.data_directory import key_file
    from agentshell.process import Process
    from xenocomm import Client

    with tempfile.TemporaryDirectory(prefix="agentshell-packs-") as name:
        packs, data = _packs_directory(Path(name), folders), Path(name, "data")
        process = Process(
            Config(
                data_dir=data,
                server=ServerConfig(address="127.0.0.1:0", http_address="127.0.0.1:0"),
                runtime=configured.runtime,
                provider=configured.provider,
                memory=configured.memory,
                tool=configured.tool,
                personality=PersonalityConfig(directories=(packs,), default=""),
                telemetry=TelemetryConfig(log_level="error", log_format="console"),
            )
        )
        await process.start()
        try:
            async with Client.connect(process.address, key_file(data).read_text().strip()) as client:
                yield client
        finally:
            await process.stop()


def _packs_directory(directory: Path, folders: Sequence[Path]) -> Path:
    """Returns a directory whose packs are these folders and no others."""
    packs = directory / "packs"
    packs.mkdir()
    for number, folder in enumerate(dict.fromkeys(folder.resolve() for folder in folders)):
        (packs / f"{number}-{folder.name}").symlink_to(folder, target_is_directory=True)
    return packs


async def _test(client: Client, tested: _Tested, provider: str, model: str, seconds: float) -> bool:
    """Runs a pack's cases, prints their outcomes, and returns whether any of them failed."""
    from agentshell.cli.render import cases_table, console
    from agentshell.personality import cases

    await _until_it_is_served(client, tested)
    out = console()
    rows: list[tuple[str, bool, Iterable[str], float]] = []
    wrong: list[str] = []
    for name, case in tested.cases.items():
        began = time.perf_counter()
        outcome = await _ask(client, tested, case, provider, model, seconds)
        found = list(cases.problems(case, outcome))
        wrong += [f"{name}: {problem}" for problem in found]
        rows.append((name, not found, sorted(set(outcome.tools)), time.perf_counter() - began))
    out.print(f"[bold]{tested.name}[/bold]", cases_table(rows), sep="\n")
    for line in wrong:
        out.print(line, markup=False, soft_wrap=True)
    return bool(wrong)


async def _ask(client: Client, tested: _Tested, case: Case, provider: str, model: str, seconds: float) -> Outcome:
    from agentshell.personality.cases import Outcome
    from xenocomm import XenocommError, text_of

    stream = client.run(case.input, personality=tested.name, provider=provider, model=model)
    try:
        async with asyncio.timeout(seconds), contextlib.aclosing(stream):
            async for _ in stream:
                continue
        turn = await client.get(stream.turn_id)
    except TimeoutError:
        return Outcome("", (), f"the turn took longer than {seconds:g} s, or waits for an answer; raise --seconds")
    except XenocommError as error:
        return Outcome("", (), str(error))
    tools = [step.tool.name for step in turn.plan.steps if step.HasField("tool") and step.attempt]
    return Outcome(text_of(turn.output), tools, turn.failure.message)


async def _until_it_is_served(client: Client, tested: _Tested) -> None:
    """Waits until the mesh serves exactly this pack, with its documents in memory."""
    import grpc.aio

    from kfm.personality.v1 import personality_service_pb2 as pb
    from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub
    from xenocomm.errors import from_rpc

    began, stub = time.perf_counter(), PersonalityServiceStub(client.channel)
    while True:
        try:
            response = await stub.Get(pb.GetRequest(personality_id=tested.name), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        found = response.personality
        if found.digest != tested.pack.digest:
            fail(
                f"the mesh serves {tested.name} from files other than {tested.folder}; run `agentshell packs reload`",
                FAILED,
            )
        if found.knowledge_state in (pb.KNOWLEDGE_STATE_UNSPECIFIED, pb.KNOWLEDGE_STATE_READY):
            return
        if time.perf_counter() - began > _KNOWLEDGE_SECONDS:
            fail(f"the documents of {tested.folder} are not in memory after {_KNOWLEDGE_SECONDS:.0f} s", FAILED)
        await asyncio.sleep(_POLL_SECONDS)
