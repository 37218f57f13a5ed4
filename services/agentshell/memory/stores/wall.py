"""The second wall between tenants: Postgres' row-level security, for the tenant that really calls.

The first is that each statement names the places it is about. This one does not rely on that: what stands behind
it sees no row of another tenant, whatever it asks for, except what all may read of the shared tenant.
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
    """A transaction behind the wall. Outside of a served call (a sweeper, say) it is one like any other."""
    async with database.transaction() as connection:
        await stand(connection)
        yield connection


async def stand(connection: Connection) -> None:
    """Goes behind the wall until the transaction ends, where a call is being served."""
    await connection.execute(_STAND, [caller()])


def caller() -> str | None:
    """Returns whom the wall is for: what functions of the schema are told that go behind it by themselves."""
    return call.tenant() if call.is_served() else None


async def leave(connection: Connection) -> None:
    """Comes back, for what Postgres does not do behind it: COPY."""
    await connection.execute(_LEAVE)
