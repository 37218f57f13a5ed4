"""`agentshell keys`: who may call."""

from __future__ import annotations

from typing import Annotated

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import ending
from agentshell.cli.options import ConfigFile, DataDir

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.callback()
def _keys() -> None:
    """Keeps `create` a command of its own name."""


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whose turns, sessions and memory the key opens.", show_default=False)],
    principal: Annotated[str, typer.Option(help="Who calls with it.")] = "owner",
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Make an API key and print it, once. A running mesh knows it at once."""
    with ending():
        from agentshell.mesh.credentials import Keyring

        config = mesh.load_config(config_file, data_dir)
        keys_file = config.auth.keys_file or config.data_dir / "api-keys.json"
        mesh_key_file = config.auth.mesh_key_file or config.data_dir / "mesh.key"
        typer.echo(Keyring(keys_file, mesh_key_file).create(tenant, principal))
