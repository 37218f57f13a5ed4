"""`agentshell ask`: one turn, its answer streamed."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import FAILED, ending, fail
from agentshell.cli.options import Address, DataDir, Json, KeyFile

if TYPE_CHECKING:
    from xenocomm import TurnStream


def ask(
    text: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    personality: Annotated[str, typer.Option(help="Who answers; default: the mesh's.")] = "",
    session: Annotated[str, typer.Option(help="The conversation; default: a new one.")] = "",
    provider: Annotated[str, typer.Option(help="Such as local, openai or anthropic.")] = "",
    model: Annotated[str, typer.Option(help="The provider's name of a model.")] = "",
    as_json: Json = False,
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Ask, and print the answer. Exits with 1 when the turn fails, with 3 when there is no mesh."""

    async def run(place: mesh.Place) -> None:
        async with mesh.connect(place) as client:
            stream = client.run(text, personality=personality, session=session, provider=provider, model=model)
            await show(stream, as_json)

    with ending():
        asyncio.run(run(mesh.find(mesh.load_config(None, data_dir), address, key_file)))


async def show(stream: TurnStream, as_json: bool) -> None:
    """Prints a turn's answer as it grows, or its updates as JSON. Raises XenocommError where there is no answer."""
    from agentshell.cli.writer import AnswerWriter, JsonWriter
    from xenocomm import XenocommError

    writer = JsonWriter(sys.stdout) if as_json else AnswerWriter(sys.stdout)
    async with aclosing(stream):
        try:
            async for update in stream:
                writer.take(update)
        except asyncio.CancelledError:
            if stream.turn_id:
                typer.echo(f"\nthe turn goes on: `agentshell turns watch {stream.turn_id}`", err=True)
            raise
    try:
        answer = writer.end()
    except XenocommError as error:
        fail(str(error), FAILED)
    if sys.stderr.isatty() and not as_json:
        typer.echo(f"\nto go on: --session {answer.session_id}", err=True)
