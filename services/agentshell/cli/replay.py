"""`agentshell turns replay`: whether today's code makes the same decisions as recorded turns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import FAILED, USAGE, ending, fail
from agentshell.cli.options import Address, DataDir, KeyFile

if TYPE_CHECKING:
    from agentshell.turn.replay import Divergence
    from kfm.turn.v1.turn_event_pb2 import RecordedTurnEvent, TurnEvent
    from xenocomm import Client

_PAGE_TURNS = 500
_SHOWN_CHARACTERS = 600

TurnIds = Annotated[list[str] | None, typer.Argument(metavar="[TURN]...", help="The turns' ids.", show_default=False)]


def replay(
    turn_ids: TurnIds = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="File of events as `show --json` prints them, of one or more turns.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All turns.")] = False,
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Replay the decisions of recorded turns with today's code. Exits with 1 if any would differ."""
    if sum((bool(turn_ids), file is not None, every)) != 1:
        fail("name turns, or give --file, or --all", USAGE)

    async def run(client: Client) -> list[bool]:
        names = _all_turns(client) if every else _each(turn_ids or [])
        return [_tell(name, [event async for event in client.events(name)]) async for name in names]

    with ending():
        if file is not None:
            told = [_tell(turn_id, events) for turn_id, events in _histories(file).items()]
        else:
            told = mesh.run(run, address, key_file, data_dir)
        if not all(told):
            raise typer.Exit(FAILED)


def _histories(file: Path) -> dict[str, list[RecordedTurnEvent]]:
    """Returns the events of a file by turn. Ends the command if a line is not an event."""
    from google.protobuf import json_format

    from kfm.turn.v1.turn_event_pb2 import RecordedTurnEvent

    histories: dict[str, list[RecordedTurnEvent]] = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            recorded = json_format.Parse(line, RecordedTurnEvent())
        except json_format.ParseError as error:
            fail(f"{file}, line {number}: {error}; `agentshell turns show TURN --json` prints the right form", USAGE)
        histories.setdefault(recorded.event.turn_id, []).append(recorded)
    return histories


async def _all_turns(client: Client) -> AsyncGenerator[str]:
    async for turn in client.list(page_size=_PAGE_TURNS):
        yield turn.turn_id


async def _each(turn_ids: Iterable[str]) -> AsyncIterator[str]:
    for turn_id in turn_ids:
        yield turn_id


def _tell(turn_id: str, events: list[RecordedTurnEvent]) -> bool:
    """Prints the outcome for a turn, and returns whether every decision matches the record."""
    from agentshell.turn.replay import divergences

    found = divergences(events)
    if not found:
        typer.echo(f"OK        {turn_id}  {len(events)} events")
        return True
    typer.echo(f"diverges  {turn_id}  {len(events)} events, {len(found)} decided differently today; the first:")
    for line in _told(found[0]):
        typer.echo(f"    {line}")
    return False


def _told(first: Divergence) -> Iterable[str]:
    yield f"on record, offset {first.recorded.offset}: {_brief(first.recorded.event)}"
    for decided in first.decided:
        yield f"today: {_brief(decided)}"
    if not first.decided:
        yield "today: nothing is decided there"


def _brief(event: TurnEvent) -> str:
    from agentshell.cli.render import event_name, json_line

    payload = getattr(event, event.WhichOneof("event") or "")
    return f"{event_name(event)} {json_line(payload)}"[:_SHOWN_CHARACTERS]
