"""`agentshell ask`: one turn, its answer streamed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import mesh, options
from agentshell.cli.ending import FAILED, fail
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
    Strategy,
)

if TYPE_CHECKING:
    from kfm.turn.v1.turn_event_pb2 import TurnUpdate
    from kfm.turn.v1.turn_pb2 import PlanStrategy, Priority, Turn
    from xenocomm import Client, TurnStream


def ask(
    text: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    personality: Annotated[
        str, typer.Option(help="Personality that answers: ID or ID@VERSION; default: the mesh's.")
    ] = "",
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
    """Ask, and print the answer. Exits with 1 if the turn fails, with 3 if there is no mesh."""

    async def run(client: Client) -> None:
        stream = client.run(
            text,
            personality=personality,
            session=session,
            provider=provider,
            model=model,
            strategy=planned(strategy),
            priority=urgent(priority),
        )
        await show(stream, as_json)

    mesh.run(run, address, key_file, data_dir)


def planned(strategy: Strategy | None) -> PlanStrategy.ValueType:
    """Returns the contract's value of an option."""
    from kfm.turn.v1.turn_pb2 import PlanStrategy

    return PlanStrategy.Value(f"PLAN_STRATEGY_{strategy.name if strategy else 'UNSPECIFIED'}")


def urgent(priority: options.Priority | None) -> Priority.ValueType:
    """Returns the contract's value of an option."""
    from kfm.turn.v1.turn_pb2 import Priority

    return Priority.Value(f"PRIORITY_{priority.name if priority else 'UNSPECIFIED'}")


async def show(stream: TurnStream, as_json: bool) -> None:
    """Prints a turn's answer as it grows, questions on stderr, or its updates as JSON. Exits with 1 if it fails."""
    from agentshell.cli.writer import AnswerWriter, JsonWriter
    from kfm.turn.v1.turn_pb2 import Turn
    from xenocomm import XenocommError

    writer, turn = JsonWriter(sys.stdout) if as_json else AnswerWriter(sys.stdout), Turn()
    async with aclosing(stream):
        try:
            async for update in stream:
                writer.take(update)
                if not as_json:
                    for line in _asked(turn, update):
                        typer.echo(line, err=True)
        except asyncio.CancelledError:
            if stream.turn_id:
                typer.echo(f"\nthe turn is still running: `agentshell turns watch {stream.turn_id}`", err=True)
            raise
    try:
        answer = writer.end()
    except XenocommError as error:
        fail(str(error), FAILED)
    if sys.stderr.isatty() and not as_json:
        typer.echo(f"\nto continue: --session {answer.session_id}", err=True)


def _asked(turn: Turn, update: TurnUpdate) -> Iterator[str]:
    """Folds an update into the turn, and yields the lines of the question that it raises, if any."""
    from agentshell.cli.render import question_lines
    from agentshell.turn.state import apply

    if update.HasField("event") and apply(turn, update.event) and update.event.HasField("step_scheduled"):
        yield from question_lines(turn, update.event.step_scheduled.step_id)
