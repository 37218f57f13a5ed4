"""`agentshell memory`: copies memory out of a mesh and into one."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import FAILED, USAGE, fail
from agentshell.cli.options import Address, DataDir, KeyFile

if TYPE_CHECKING:
    from agentshell.cli import copy_file
    from kfm.memory.v1.memory_service_pb2 import ExportRequest, ImportRequest, Item
    from xenocomm import Client

app = typer.Typer(help="Copy what a tenant remembers into a file, and a file into a mesh.", no_args_is_help=True)

# Limits of one request, unless a single item is larger: far below what a mesh accepts.
_BATCH_ITEMS = 200
_BATCH_BYTES = 1024 * 1024

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file.", show_default=False)]


@app.command("export")
def export(
    file: File,
    user: Annotated[str, typer.Option(help="Only what is about this user, or names this user.")] = "",
    namespace: Annotated[str, typer.Option(help="Only this namespace, such as user/ann.")] = "",
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Write everything that the key's tenant remembers to a file. If that is cut short, the same command resumes it."""
    from kfm.memory.v1.memory_service_pb2 import ExportRequest

    if user and namespace:
        fail("give --user or --namespace, not both", USAGE)
    request = ExportRequest(user_id=user) if user else ExportRequest(everything=True)
    if namespace:
        request = ExportRequest(namespace=namespace)
    mesh.run(lambda client: _export(client, file, request), address, key_file, data_dir)


@app.command("import")
def import_file(
    file: File,
    partial: Annotated[bool, typer.Option("--partial", help="Import the file even if it is cut short.")] = False,
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Import a file's records and messages for the key's tenant. Repeating is harmless: what exists is left alone."""
    mesh.run(lambda client: _import(client, file, partial), address, key_file, data_dir)


async def _export(client: Client, path: Path, request: ExportRequest) -> None:
    from agentshell.cli import copy_file
    from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub

    with _open(path) as file:
        counts = _resume(path, file, request)
        call = MemoryServiceStub(client.channel).Export(request)
        try:
            async for response in call:
                copy_file.add(file, response)
                counts[response.item.WhichOneof("kind") or ""] += 1
        finally:
            call.cancel()
        copy_file.end(file, counts["record"], counts["message"])
        file.flush()
        os.fsync(file.fileno())
    typer.echo(f"{counts['record']} records, {counts['message']} messages")


def _open(path: Path) -> BinaryIO:
    """Opens a file for reading and writing. A new one is for its owner only: it holds what people said."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")


def _resume(path: Path, file: BinaryIO, request: ExportRequest) -> dict[str, int]:
    """Prepares the file and the request to go on where the file ends. Returns the counts of what it already holds."""
    from agentshell.cli import copy_file

    if not path.stat().st_size:
        copy_file.begin(file, request)
        return {"record": 0, "message": 0}
    scan = _scan(path, file)
    if scan.is_whole:
        fail(f"{path} is already complete: name another file", USAGE)
    if scan.request != request:
        fail(f"{path} was started with other options: give those again, or name another file", USAGE)
    file.truncate(scan.end)
    file.seek(scan.end)
    request.cursor = scan.cursor
    return {"record": scan.record_count, "message": scan.message_count}


async def _import(client: Client, path: Path, partial: bool) -> None:
    from agentshell.cli import copy_file
    from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub

    with path.open("rb") as file:
        scan = _scan(path, file)
        if not scan.is_whole and not partial:
            fail(f"{path} is cut short after {scan.end} bytes: export it again, or give --partial", FAILED)
        answer = await MemoryServiceStub(client.channel).Import(_requests(copy_file.items(file)))
    typer.echo(f"{answer.record_count} records, {answer.message_count} messages")
    typer.echo(f"already there: {answer.unchanged_record_count} records, {answer.unchanged_message_count} messages")


async def _requests(items: Iterable[Item]) -> AsyncGenerator[ImportRequest]:
    """Yields Import requests of bounded size."""
    from kfm.memory.v1.memory_service_pb2 import ImportRequest

    request, size_bytes = ImportRequest(), 0
    for item in items:
        item_bytes = item.ByteSize()
        if request.items and (len(request.items) == _BATCH_ITEMS or size_bytes + item_bytes > _BATCH_BYTES):
            yield request
            request, size_bytes = ImportRequest(), 0
        request.items.append(item)
        size_bytes += item_bytes
    if request.items:
        yield request


def _scan(path: Path, file: BinaryIO) -> copy_file.Scan:
    from agentshell.cli import copy_file

    try:
        return copy_file.scan(file)
    except ValueError as error:
        fail(f"{path}: {error}", FAILED)
