"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; default: AGENTSHELL_CONFIG.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is that must survive.")]
Address = Annotated[str, typer.Option("--address", help="HOST:PORT of a mesh; default: that of the data directory.")]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="File with an API key; default: that of the data directory.")
]
Json = Annotated[bool, typer.Option("--json", help="Print Protobuf JSON, one message a line.")]
TurnId = Annotated[str, typer.Argument(metavar="TURN", help="The turn's id.", show_default=False)]
