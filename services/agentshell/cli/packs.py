"""`agentshell packs`: makes packs, checks them, and lists those that the mesh serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import mesh, packs_cases
from agentshell.cli.ending import FAILED, USAGE, ending, fail
from agentshell.cli.options import Address, DataDir, Json, KeyFile

if TYPE_CHECKING:
    from agentshell.mesh.config import Config
    from agentshell.personality.pack import Pack
    from agentshell.personality.yaml_file import PackError
    from kfm.error.v1.error_pb2 import Failure
    from xenocomm import Client

_TIMEOUT_SECONDS = 60.0
_PAGE = 500

app = typer.Typer(help="Make, check, test, sign, list and reload personality packs.", no_args_is_help=True)
app.command("test")(packs_cases.ask_cases)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a pack.", show_default=False)]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="The folders of packs.", show_default=False)]


@app.command()
def new(
    personality_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the new personality.", show_default=False)],
    directory: Annotated[Path, typer.Option("--in", help="Directory of packs to create it in.")] = Path(),
) -> None:
    """Make a small working pack to start from."""
    with ending():
        from agentshell.personality import manifest_schema, pack, sample
        from agentshell.personality.yaml_file import PackError

        written = sample.files(personality_id)
        try:
            pack.parse({path: text.encode() for path, text in written.items()})
        except PackError as error:
            fail(f"{personality_id!r} cannot be a personality's id: {error}", USAGE)
        folder = directory / personality_id
        if folder.exists():
            fail(f"{folder} already exists; choose another id", USAGE)
        for path, text in written.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (directory / manifest_schema.FILE).write_text(manifest_schema.text())
        typer.echo(f"created {folder}; `agentshell packs test {folder}` asks it something")


@app.command()
def validate(folders: Folders) -> None:
    """Check packs, and say what is wrong with them: file, line and fix. Needs no mesh."""
    with ending():
        from agentshell.personality.pack import Pack

        broken = 0
        for folder in folders:
            checked = _check(folder)
            if isinstance(checked, Pack):
                typer.echo(f"{folder}: {checked.manifest.id} {checked.manifest.version} is valid, {checked.digest}")
                continue
            broken += 1
            for error in (checked, *checked.others):
                typer.echo(f"{folder}/{error.text}")
        if broken:
            raise typer.Exit(FAILED)


@app.command()
def digest(folder: Folder) -> None:
    """Print the digest of a pack's files, which turns are pinned to."""
    with ending():
        from agentshell.personality import files, pack
        from agentshell.personality.yaml_file import PackError

        try:
            typer.echo(pack.digest(files.of_folder(_existing(folder).resolve())))
        except PackError as error:
            fail(f"{folder}/{error}", FAILED)


@app.command("pack")
def pack_archive(
    folder: Folder,
    key: Annotated[
        Path | None,
        typer.Option(help="File with an Ed25519 private key to sign with, PEM; created if it does not exist."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The archive; default: ID-VERSION.tar.gz.")] = None,
) -> None:
    """Make an archive of a pack, for `personality.archives` to name, and its signature if a key is given."""
    with ending():
        from agentshell.personality import files, signature
        from agentshell.personality.yaml_file import PackError

        checked = _check(folder)
        if isinstance(checked, PackError):
            fail(f"{folder}/{checked}", FAILED)
        archive = out or Path(f"{checked.manifest.id}-{checked.manifest.version}.tar.gz")
        content = files.to_archive(files.of_folder(folder.resolve()))
        signed, private = Path(f"{archive}{signature.SUFFIX}"), _private_key(key)
        signature_bytes = signature.sign(content, private) if private else b""
        archive.write_bytes(content)
        signed.unlink(missing_ok=True)
        typer.echo(f"{archive}: {checked.digest}")
        if private:
            signed.write_bytes(signature_bytes)
            typer.echo(f"{signed}: signed by the key {signature.public_key(private)}, for personality.trusted_keys")


@app.command("list")
def list_packs(
    as_json: Json = False, address: Address = "", key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """List the personalities that the mesh serves. Shows operators what is wrong with packs, and then exits with 1."""

    async def run(client: Client) -> None:
        from agentshell.cli.render import console, json_line, packs_table
        from kfm.personality.v1.personality_service_pb2 import ListRequest, ListResponse
        from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub

        stub = PersonalityServiceStub(client.channel)
        found, request = ListResponse(), ListRequest(page_size=_PAGE)
        while True:
            page = await stub.List(request, timeout=_TIMEOUT_SECONDS)
            found.MergeFrom(page)
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        found.ClearField("next_page_token")
        found.failures.extend(await _failures(mesh.load_config(None, data_dir), address))
        if as_json:
            typer.echo(json_line(found))
        else:
            console().print(packs_table(found))
            for failure in found.failures:
                typer.echo(failure.message)
        if found.failures:
            raise typer.Exit(FAILED)

    mesh.run(run, address, key_file, data_dir)


@app.command()
def reload(address: Address = "", data_dir: DataDir = None) -> None:
    """Make the mesh read all packs and archives again; for operators. Exits with 1 if one cannot be loaded."""

    async def run() -> None:
        from kfm.personality.v1.personality_service_pb2 import ReloadRequest
        from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub

        async with mesh.operate(mesh.load_config(None, data_dir), address, _TIMEOUT_SECONDS) as channel:
            response = await PersonalityServiceStub(channel).Reload(ReloadRequest())
        for failure in response.failures:
            typer.echo(failure.message)
        typer.echo(f"{response.loaded_pack_count} live, {len(response.failures)} broken")
        if response.failures:
            raise typer.Exit(FAILED)

    with ending():
        asyncio.run(run())


async def _failures(config: Config, address: str) -> Sequence[Failure]:
    """Returns what the mesh tells operators is wrong with packs; nothing if the caller is not an operator."""
    from agentshell.mesh import data_directory
    from kfm.personality.v1.personality_service_pb2 import ListRequest
    from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub
    from xenocomm import XenocommError

    if not data_directory.mesh_key_file(config).exists():
        return ()
    try:
        async with mesh.operate(config, address, _TIMEOUT_SECONDS) as channel:
            return (await PersonalityServiceStub(channel).List(ListRequest(page_size=1))).failures
    except XenocommError as error:
        if error.reason == "CREDENTIAL_INVALID":  # The secret belongs to another mesh.
            return ()
        raise


def _check(folder: Path) -> Pack | PackError:
    """Returns a pack, or what is wrong with it or its cases."""
    from agentshell.personality import cases, files, pack
    from agentshell.personality.yaml_file import PackError

    try:
        found = files.of_folder(_existing(folder).resolve())
        checked = pack.parse(found)
        cases.parse(found)
    except PackError as error:
        return error
    return checked


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        fail(f"{folder} is not a directory; name the folder of a pack", USAGE)
    return folder


def _private_key(file: Path | None) -> bytes | None:
    from agentshell.personality import signature

    if file is None:
        return None
    if not file.exists():
        file.touch(0o600)
        file.write_bytes(signature.new_key())
        typer.echo(f"{file}: a new private key")
    private = file.read_bytes()
    try:
        signature.public_key(private)
    except ValueError as error:
        fail(f"{file}: {error}", USAGE)
    return private
