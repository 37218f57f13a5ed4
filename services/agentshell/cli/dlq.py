"""`agentshell dlq`: lists the records that could not be handled, and replays or drops them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import ending
from agentshell.cli.options import Address, DataDir, Json

if TYPE_CHECKING:
    from kfm.admin.v1.admin_service_pb2 import DropDeadLetterResponse, ReplayDeadLetterResponse
    from kfm.admin.v1.admin_service_pb2_grpc import AdminServiceAsyncStub

app = typer.Typer(help="List, show, replay and drop dead letters; for operators.", no_args_is_help=True)

_TIMEOUT_SECONDS = 60.0

DeadLetterId = Annotated[
    str, typer.Argument(metavar="DEAD_LETTER", help="The id, as `list` prints it.", show_default=False)
]
DeadLetterIds = Annotated[
    list[str], typer.Argument(metavar="DEAD_LETTER...", help="The ids, as `list` prints them.", show_default=False)
]


@app.command("list")
def list_dead_letters(
    topic: Annotated[str, typer.Option(help="Only dead letters of this topic.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number to list.")] = 100,
    as_json: Json = False,
    address: Address = "",
    data_dir: DataDir = None,
) -> None:
    """List the dead letters that are neither replayed nor dropped."""

    async def run(admin: AdminServiceAsyncStub) -> None:
        from agentshell.cli.render import console, dead_letters_table, json_line
        from kfm.admin.v1.admin_service_pb2 import DeadLetter, ListDeadLettersRequest

        letters: list[DeadLetter] = []
        request = ListDeadLettersRequest(topic=topic)
        while True:
            request.page_size = limit - len(letters)
            response = await admin.ListDeadLetters(request)
            letters += response.dead_letters
            request.page_token = response.next_page_token
            if not request.page_token or len(letters) == limit:
                break
        if as_json:
            for letter in letters:
                typer.echo(json_line(letter))
        else:
            console().print(dead_letters_table(letters))

    _run(run, address, data_dir)


@app.command()
def show(dead_letter_id: DeadLetterId, as_json: Json = False, address: Address = "", data_dir: DataDir = None) -> None:
    """Show a dead letter: why it failed, and the record; --json prints it in full."""

    async def run(admin: AdminServiceAsyncStub) -> None:
        from agentshell.cli.render import dead_letter_lines, json_line
        from kfm.admin.v1.admin_service_pb2 import GetDeadLetterRequest

        letter = (await admin.GetDeadLetter(GetDeadLetterRequest(dead_letter_id=dead_letter_id))).dead_letter
        for line in [json_line(letter)] if as_json else dead_letter_lines(letter):
            typer.echo(line)

    _run(run, address, data_dir)


@app.command()
def replay(dead_letter_ids: DeadLetterIds, address: Address = "", data_dir: DataDir = None) -> None:
    """Put records back at the end of their topics; each goes back once, however often you ask."""

    from kfm.admin.v1.admin_service_pb2 import ReplayDeadLetterRequest as Request

    _settle(
        lambda admin, letter: admin.ReplayDeadLetter(Request(dead_letter_id=letter)), dead_letter_ids, address, data_dir
    )


@app.command()
def drop(dead_letter_ids: DeadLetterIds, address: Address = "", data_dir: DataDir = None) -> None:
    """Drop dead letters: they are no longer listed, but the log keeps them."""

    from kfm.admin.v1.admin_service_pb2 import DropDeadLetterRequest as Request

    _settle(
        lambda admin, letter: admin.DropDeadLetter(Request(dead_letter_id=letter)), dead_letter_ids, address, data_dir
    )


def _settle(
    settle: Callable[[AdminServiceAsyncStub, str], Awaitable[ReplayDeadLetterResponse | DropDeadLetterResponse]],
    dead_letter_ids: list[str],
    address: str,
    data_dir: Path | None,
) -> None:
    """Settles dead letters, and prints how each of them is now settled."""

    async def run(admin: AdminServiceAsyncStub) -> None:
        from agentshell.cli.render import settled

        for dead_letter_id in dead_letter_ids:
            typer.echo(f"{dead_letter_id} {settled((await settle(admin, dead_letter_id)).settlement)}")

    _run(run, address, data_dir)


def _run(work: Callable[[AdminServiceAsyncStub], Awaitable[None]], address: str, data_dir: Path | None) -> None:
    async def run() -> None:
        from kfm.admin.v1.admin_service_pb2_grpc import AdminServiceStub

        async with mesh.operate(mesh.load_config(None, data_dir), address, _TIMEOUT_SECONDS) as channel:
            await work(AdminServiceStub(channel))

    with ending():
        asyncio.run(run())
