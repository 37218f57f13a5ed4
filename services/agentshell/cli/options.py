"""The options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Strategy(StrEnum):
    """How a turn is planned."""

    DIRECT = "direct"
    PLANNED = "planned"


class Priority(StrEnum):
    """Which turns go first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; default: AGENTSHELL_CONFIG.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Directory for all that must survive a restart.")]
Address = Annotated[str, typer.Option("--address", help="HOST:PORT of a mesh; default: that of the data directory.")]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="File with an API key; default: that of the data directory.")
]
Json = Annotated[bool, typer.Option("--json", help="Print Protobuf JSON, one message per line.")]
Session = Annotated[str, typer.Option(help="The conversation; default: a new one.")]
Provider = Annotated[str, typer.Option(help="Such as local, openai, anthropic or gemini.")]
Model = Annotated[str, typer.Option(help="The provider's name of a model, or an alias.")]
HowPlanned = Annotated[Strategy | None, typer.Option("--strategy", help="Whether a model writes the plan first.")]
HowUrgent = Annotated[Priority | None, typer.Option("--priority", help="Which turns go first when not all can.")]
TurnId = Annotated[str, typer.Argument(metavar="TURN", help="The turn's id.", show_default=False)]
