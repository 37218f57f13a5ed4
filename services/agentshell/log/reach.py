"""Bounds the driver's calls to Postgres, and translates their failures into the log's own error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

STATEMENT_SECONDS = 5.0
_RETRY_DELAY = timedelta(seconds=1)


def unavailable(what: str, cause: BaseException | None = None) -> AgentShellError:
    """Returns the error of a log that cannot be reached."""
    detail = f" ({type(cause).__name__})" if cause else ""
    return AgentShellError(
        error_pb2.ERROR_REASON_LOG_UNAVAILABLE,
        f"the log could not {what}{detail}: check that its Postgres runs and accepts connections, then try again",
        retry_delay=_RETRY_DELAY,
        cause=cause,
    )


@asynccontextmanager
async def reach(what: str, seconds: float = STATEMENT_SECONDS) -> AsyncGenerator[None]:
    """Limits its block to `seconds`. Raises LOG_UNAVAILABLE if Postgres does not answer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (psycopg.OperationalError, psycopg.InterfaceError, OSError, TimeoutError) as error:
        raise unavailable(what, error) from error
    except AgentShellError as error:
        if error.reason != error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE:
            raise
        raise unavailable(what, error) from error
