"""How commands end: a failure is one message on stderr and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import NoReturn

import typer

FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


@contextlib.contextmanager
def ending(config_invalid: int = USAGE) -> Generator[None]:
    """Ends the command with the exit code for what is raised inside; `config_invalid` is that of our own errors."""
    from agentshell.mesh.errors import AgentShellError
    from xenocomm import XenocommError

    try:
        yield
    except AgentShellError as error:
        fail(error.message, config_invalid)
    except XenocommError as error:
        if error.reason == "SERVICE_UNAVAILABLE":
            fail(f"{error.message}; `agentshell up` starts a mesh, --address names another", UNREACHABLE)
        fail(str(error), FAILED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), FAILED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str, code: int) -> NoReturn:
    """Prints what is wrong and ends the command."""
    typer.echo(f"agentshell: {message}", err=True)
    raise typer.Exit(code)
