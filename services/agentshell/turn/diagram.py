"""Draws the tables of `state` for ARCHITECTURE.md: `python -m agentshell.turn.diagram ARCHITECTURE.md`."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from agentshell.turn.state import STEP_MOVES, TURN_MOVES
from kfm.turn.v1.turn_pb2 import StepState, TurnState

BEGIN, END = "<!-- drawn from agentshell/turn/state.py by `make diagram` -->", "<!-- end of drawing -->"


def draw() -> str:
    """Returns both diagrams as Markdown."""
    turns = {(TurnState.Name(a), event): TurnState.Name(b) for (a, event), b in TURN_MOVES.items()}
    steps = {(StepState.Name(a), event): StepState.Name(b) for (a, event), b in STEP_MOVES.items()}
    return "\n".join(
        ("A turn:", "", *_mermaid(turns, "TURN_STATE_"), "", "A step:", "", *_mermaid(steps, "STEP_STATE_"))
    )


def insert(text: str) -> str:
    """Returns the document with the diagrams between its markers redrawn."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{draw()}\n{END}", text, flags=re.DOTALL
    )


def _mermaid(moves: Mapping[tuple[str, str], str], prefix: str) -> Iterable[str]:
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (before, event), after in moves.items():
        if before != after:
            edges[before.removeprefix(prefix), after.removeprefix(prefix)].append(event)
    yield "```mermaid"
    yield "stateDiagram-v2"
    for (before, after), events in edges.items():
        yield f"    {'[*]' if before == 'UNSPECIFIED' else before} --> {after}: {', '.join(events)}"
    yield "```"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(insert(document.read_text()))
