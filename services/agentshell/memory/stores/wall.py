"""The second wall between tenants: Postgres' row-level security, for the tenant that is actually calling.

The first is that each statement names the places it is about. This one does not rely on that: a transaction behind it
sees no row of another tenant, whatever it asks for, except the shared tenant's rows that everybody may read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from agentshell.db.database import Connection, Database
from agentshell.mesh import call

_STAND = "SELECT memory.stand(%s)"
_LEAVE = "SELECT set_config('role', 'none', true)"


@asynccontextmanager
async def reading(database: Database) -> AsyncGenerator[Connection]:
    """A transaction behind the wall. Outside a served call (in a sweeper, say), it is like any other."""
    async with database.transaction() as connection:
        await stand(connection)
        yield connection


async def stand(connection: Connection) -> None:
    """Puts the transaction behind the wall until it ends, if a call is being served."""
    await connection.execute(_STAND, [caller()])


def caller() -> str | None:
    """Returns the tenant that the wall is for, as given to functions of the schema that go behind it themselves."""
    return call.tenant() if call.is_served() else None


async def leave(connection: Connection) -> None:
    """Leaves the wall, for what Postgres does not do behind it: COPY."""
    await connection.execute(_LEAVE)
