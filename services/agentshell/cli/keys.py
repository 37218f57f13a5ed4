"""`agentshell keys`: creates the keys that callers need."""

from __future__ import annotations

from typing import Annotated

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import ending
from agentshell.cli.options import ConfigFile, DataDir

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.callback()
def _keys() -> None:
    """Keeps `create` a named subcommand."""


@app.command()
def create(
    tenant: Annotated[
        str, typer.Argument(help="Tenant whose turns, sessions and memory the key opens.", show_default=False)
    ],
    principal: Annotated[str, typer.Option(help="Principal that calls with it.")] = "owner",
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Make an API key and print it, once. A running mesh accepts it immediately."""
    with ending():
        from agentshell.mesh import data_directory

        keyring = data_directory.keyring(mesh.load_config(config_file, data_dir))
        typer.echo(keyring.create(tenant, principal))
