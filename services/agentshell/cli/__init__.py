"""The command `agentshell`. What a command needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agentshell.cli import ask, demo, dlq, doctor, keys, memory, packs, settings, turns, up

app = typer.Typer(
    name="agentshell",
    help="A Protobuf-first gRPC service mesh for AI agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"agentshell {version('agentshell')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="Call the mesh over TLS, trusting the authorities in this file; PEM.")
    ] = None,
) -> None:
    if ca is not None:
        os.environ["AGENTSHELL_TLS__CA_FILE"] = str(ca)  # For everything that reads the configuration.


app.command("up")(up.up)
app.command("ask")(ask.ask)
app.add_typer(turns.app, name="turns")
app.add_typer(dlq.app, name="dlq")
app.add_typer(packs.app, name="packs")
app.add_typer(memory.app, name="memory")
app.add_typer(keys.app, name="keys")
app.command("config")(settings.settings)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def main() -> None:
    """Runs the command named by the arguments."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own messages about connections are not for our users.
    app()
