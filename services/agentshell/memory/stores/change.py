"""Changes to places: one transaction each, after which no cache answers with what was there before."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from agentshell.db.database import Connection, Database
from agentshell.memory.stores import wall
from agentshell.memory.stores.store import Place

_BEGIN = "SELECT memory.begin_change(%s::text[], %s::text[], %s)"
_END = "SELECT memory.end_change(%s::text[])"
_SWEEP = "DELETE FROM memory.generations WHERE update_time < now() - interval '1 day'"


@asynccontextmanager
async def change(database: Database, *places: Place, alone: bool = False) -> AsyncGenerator[Connection]:
    """A transaction that changes what the places hold. At its end, each place is at its next generation.

    `alone`: no other change to them runs meanwhile. Those who wait leave half of the connections to other tenants.
    """
    async with database.shares.of(places[0].tenant_id), database.transaction() as connection:
        tenants, names = sorted({place.tenant_id for place in places}), sorted({place.key for place in places})
        held = [tenants, names] if alone else [tenants + names, []]
        await connection.execute(_BEGIN, [*held, wall.caller()])
        yield connection
        await count(connection, *places)


@asynccontextmanager
async def change_all(database: Database, tenant_id: str) -> AsyncGenerator[Connection]:
    """A transaction that changes any of a tenant's places, while no other one does. The caller calls `count`."""
    async with database.shares.of(tenant_id), database.transaction() as connection:
        await connection.execute(_BEGIN, ([], [tenant_id], wall.caller()))
        yield connection


async def count(connection: Connection, *places: Place) -> None:
    """Moves places to their next generations, at the end of a transaction that has found out which ones it changes."""
    await connection.execute(_END, [list({place.key for place in places})])


async def sweep(connection: Connection) -> None:
    """Removes the generations that no cache entry can refer to any more."""
    await connection.execute(_SWEEP)
