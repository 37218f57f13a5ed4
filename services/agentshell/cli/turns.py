"""`agentshell turns`: shows what the mesh did and is doing, and acts on turns."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import diff, mesh, replay
from agentshell.cli.ask import planned, urgent
from agentshell.cli.ask import show as show_stream
from agentshell.cli.ending import ending
from agentshell.cli.options import (
    Address,
    DataDir,
    HowPlanned,
    HowUrgent,
    Json,
    KeyFile,
    Model,
    Provider,
    Session,
    TurnId,
)

if TYPE_CHECKING:
    from agentshell.mesh.config import Config
    from xenocomm import Client

_REBUILD_SECONDS = 3600.0

app = typer.Typer(help="List, show, watch, answer, fork, compare, replay, cancel, rebuild turns.", no_args_is_help=True)
app.command("replay")(replay.replay)
app.command("diff")(diff.diff)


class State(StrEnum):
    """Where a turn stands."""

    REQUESTED = "requested"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@app.command("list")
def list_turns(
    session: Annotated[str, typer.Option(help="Only turns of this session.")] = "",
    state: Annotated[list[State] | None, typer.Option(help="Only turns in this state; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number to list.")] = 20,
    as_json: Json = False,
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """List turns, newest first."""

    async def run(client: Client) -> None:
        from agentshell.cli.render import console, json_line, turns_table
        from kfm.turn.v1.turn_pb2 import Turn, TurnState

        states = [TurnState.Value(f"TURN_STATE_{wanted.name}") for wanted in state or ()]
        turns: list[Turn] = []
        async for turn in client.list(session=session, states=states, page_size=limit):
            turns.append(turn)
            if len(turns) == limit:
                break
        if as_json:
            for turn in turns:
                typer.echo(json_line(turn))
        else:
            console().print(turns_table(turns))

    mesh.run(run, address, key_file, data_dir)


@app.command()
def show(
    turn_id: TurnId,
    as_json: Json = False,
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show a turn and its events; --json prints the events."""

    async def run(client: Client) -> None:
        from agentshell.cli.render import console, events_table, json_line, question_lines, turns_table

        turn = await client.get(turn_id)
        events = [event async for event in client.events(turn_id)]
        if as_json:
            for event in events:
                typer.echo(json_line(event))
        else:
            out = console()
            out.print(turns_table([turn]), "", events_table(events), sep="\n")
            for line in question_lines(turn):
                out.print(line, markup=False)
            if turn.failure.message:
                out.print(f"\n{turn.failure.message}", markup=False)

    mesh.run(run, address, key_file, data_dir)


@app.command()
def watch(
    turn_id: TurnId,
    as_json: Json = False,
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Follow a turn from its beginning to its end, as `ask` does."""
    mesh.run(lambda client: show_stream(client.watch(turn_id), as_json), address, key_file, data_dir)


@app.command()
def cancel(
    turn_id: TurnId,
    message: Annotated[str, typer.Option(help="Why, for people to read.")] = "",
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Ask the mesh to cancel a turn."""

    async def run(client: Client) -> None:
        await client.cancel(turn_id, message)
        typer.echo(f"requested; `agentshell turns show {turn_id}` shows the outcome")

    mesh.run(run, address, key_file, data_dir)


@app.command()
def answer(
    turn_id: TurnId,
    step: Annotated[
        str, typer.Argument(help="The step that waits for the answer, such as `confirm`.", show_default=False)
    ],
    text: Annotated[str, typer.Argument(help="The answer.", show_default=False)],
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Answer the question that a turn waits on; `turns show` prints it."""

    async def run(client: Client) -> None:
        await client.provide_input(turn_id, _named(turn_id, step), text)
        typer.echo(f"answered; `agentshell turns watch {turn_id}` follows the turn")

    mesh.run(run, address, key_file, data_dir)


@app.command()
def fork(
    turn_id: TurnId,
    step: Annotated[str, typer.Option("--from", help="The last step to share, such as `retrieve`.")] = "",
    text: Annotated[str, typer.Option(help="Message to ask instead.")] = "",
    personality: Annotated[str, typer.Option(help="Personality that answers instead, with its current pack.")] = "",
    session: Session = "",
    provider: Provider = "",
    model: Model = "",
    strategy: HowPlanned = None,
    priority: HowUrgent = None,
    as_json: Json = False,
    address: Address = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Start a turn that shares another's history up to a step, and print its answer as `ask` does."""

    async def run(client: Client) -> None:
        forked = await client.fork(
            turn_id,
            _named(turn_id, step),
            text=text,
            personality=personality,
            session=session,
            provider=provider,
            model=model,
            strategy=planned(strategy),
            priority=urgent(priority),
        )
        typer.echo(f"turn {forked.turn_id}", err=True)
        await show_stream(client.watch(forked.turn_id), as_json)

    mesh.run(run, address, key_file, data_dir)


@app.command()
def rebuild(address: Address = "", data_dir: DataDir = None) -> None:
    """Rebuild the index of turns from the log; for operators. Turns go on meanwhile."""

    async def run(config: Config) -> None:
        from kfm.admin.v1.admin_service_pb2 import RebuildTurnsRequest
        from kfm.admin.v1.admin_service_pb2_grpc import AdminServiceStub

        async with mesh.operate(config, address, _REBUILD_SECONDS) as channel:
            response = await AdminServiceStub(channel).RebuildTurns(RebuildTurnsRequest())
        typer.echo(f"{response.turn_count} turns")

    with ending():
        asyncio.run(run(mesh.load_config(None, data_dir)))


def _named(turn_id: str, step: str) -> str:
    """Returns a step's full id, which begins with its turn's."""
    return step if not step or step.startswith(f"{turn_id}/") else f"{turn_id}/{step}"
