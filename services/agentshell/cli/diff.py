"""`agentshell turns diff`: how two turns differ, such as a fork and its original."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import FAILED, ending
from agentshell.cli.options import Address, DataDir, KeyFile

if TYPE_CHECKING:
    from kfm.content.v1.content_pb2 import Message, Usage
    from kfm.turn.v1.turn_event_pb2 import RecordedTurnEvent
    from kfm.turn.v1.turn_pb2 import Step, Turn
    from xenocomm import Client

_MAX_LINES = 40

First = Annotated[str, typer.Argument(metavar="A", help="A turn's id.", show_default=False)]
Second = Annotated[str, typer.Argument(metavar="B", help="Another's.", show_default=False)]


def diff(
    first: First, second: Second, address: Address = "", key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """Compare two turns, step by step. Exits with 1 if they differ in more than time."""

    async def run(client: Client) -> tuple[Turn, Turn]:
        a = [event async for event in client.events(first)]
        return folded(a), folded([event async for event in client.events(second)])

    turns = mesh.run(run, address, key_file, data_dir)
    with ending():
        same = True
        for is_same, line in compared(*turns):
            same = same and is_same
            typer.echo(line)
        if not same:
            raise typer.Exit(FAILED)


def folded(events: Iterable[RecordedTurnEvent]) -> Turn:
    """Returns the turn folded from its events, with all outputs."""
    from agentshell.turn.state import apply
    from kfm.turn.v1.turn_pb2 import Turn

    turn = Turn()
    for recorded in events:
        apply(turn, recorded.event)
    return turn


def compared(a: Turn, b: Turn) -> Iterator[tuple[bool, str]]:
    """Yields lines, each with whether it reports something that is the same in both turns."""
    ours, theirs = _named(a), _named(b)
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in theirs:
            yield False, f"only in A  {name}"
        elif name not in ours:
            yield False, f"only in B  {name}"
        else:
            lines = list(_of_step(ours[name], theirs[name]))
            verdict = "differs  " if lines else "same     "
            yield not lines, f"{verdict}  {name}  ({_milliseconds(ours[name])} | {_milliseconds(theirs[name])} ms)"
            for line in lines:
                yield False, f"    {line}"
    lines = list(_of_turn(a, b))
    yield not lines, f"{'differs  ' if lines else 'same     '}  the turn"
    for line in lines:
        yield False, f"    {line}"


def _of_step(a: Step, b: Step) -> Iterator[str]:
    from kfm.turn.v1.turn_pb2 import StepState

    yield from _of("state", *(StepState.Name(step.state).removeprefix("STEP_STATE_") for step in (a, b)))
    yield from _of("attempts", str(a.attempt), str(b.attempt))
    yield from _of("failure", a.failure.message, b.failure.message)
    yield from _of("model", a.result.model, b.result.model)
    yield from _of_usage(a.result.usage, b.result.usage)
    yield from _of_text("output", _text(a.result.output), _text(b.result.output))


def _of_turn(a: Turn, b: Turn) -> Iterator[str]:
    from kfm.turn.v1.turn_pb2 import TurnState

    yield from _of("state", *(TurnState.Name(turn.state).removeprefix("TURN_STATE_") for turn in (a, b)))
    yield from _of("personality", a.personality_digest, b.personality_digest)
    yield from _of_text("input", _text(a.input), _text(b.input))
    yield from _of_usage(a.usage, b.usage)
    yield from _of_text("output", _text(a.output), _text(b.output))


def _of(name: str, a: str, b: str) -> Iterator[str]:
    if a != b:
        yield f"{name}: {a or 'none'} | {b or 'none'}"


def _of_usage(a: Usage, b: Usage) -> Iterator[str]:
    from agentshell.cli.render import cost, tokens

    yield from _of("tokens", tokens(a), tokens(b))
    yield from _of("cost", *(cost(usage) if usage.ByteSize() else "" for usage in (a, b)))


def _of_text(name: str, a: str, b: str) -> Iterator[str]:
    if a == b:
        return
    yield f"{name}:"
    lines = list(difflib.unified_diff(a.splitlines(), b.splitlines(), "A", "B", lineterm="", n=1))
    yield from (f"    {line}" for line in lines[:_MAX_LINES])
    if len(lines) > _MAX_LINES:
        yield f"    … {len(lines) - _MAX_LINES} more lines"


def _named(turn: Turn) -> dict[str, Step]:
    return {step.step_id.removeprefix(f"{turn.turn_id}/"): step for step in turn.plan.steps}


def _text(message: Message) -> str:
    """Returns the text of a message, with its other parts as JSON."""
    from agentshell.cli.render import json_line

    return "\n".join(part.text.text if part.HasField("text") else json_line(part) for part in message.parts)


def _milliseconds(step: Step) -> str:
    if not step.HasField("schedule_time") or not step.HasField("end_time"):
        return "-"
    return f"{(step.end_time.ToMicroseconds() - step.schedule_time.ToMicroseconds()) / 1000:.0f}"
