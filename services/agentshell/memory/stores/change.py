"""Changes of places: one transaction each, after which no cache answers with what was before it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from agentshell.db.database import Connection, Database
from agentshell.memory.stores import wall
from agentshell.memory.stores.store import Place

# The last statement of its transaction, and in one order for all: what it locks is locked for no longer than a commit.
_COUNT = """
    INSERT INTO memory.generations AS counted (place, generation)
    SELECT place, 1 FROM unnest(%s::text[]) AS changed (place) ORDER BY place
    ON CONFLICT (place) DO UPDATE SET generation = counted.generation + 1, update_time = now()"""
# What changes a place holds it, and its tenant, with others; what forgets holds alone what it forgets: a change that is
# under way at the same time is wholly before it, and gone, or wholly after it. Always the tenant first.
_HOLD = "SELECT pg_advisory_xact_lock_shared(hashtextextended(name, 1)) FROM unnest(%s::text[]) AS held (name)"
_HOLD_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended(name, 1)) FROM unnest(%s::text[]) AS held (name)"
_SWEEP = "DELETE FROM memory.generations WHERE update_time < now() - interval '1 day'"


@asynccontextmanager
async def change(database: Database, *places: Place, alone: bool = False) -> AsyncGenerator[Connection]:
    """A transaction that changes what the places hold, at the end of which each is at its next generation.

    `alone`: while no other one changes them.
    """
    async with database.transaction() as connection:
        tenants, names = sorted({place.tenant_id for place in places}), sorted({place.key for place in places})
        if alone:
            await connection.execute(_HOLD, [tenants])
            await connection.execute(_HOLD_ALONE, [names])
        else:
            await connection.execute(_HOLD, [tenants + names])
        await wall.stand(connection)
        yield connection
        await count(connection, *places)


@asynccontextmanager
async def change_all(database: Database, tenant_id: str) -> AsyncGenerator[Connection]:
    """A transaction that changes any of a tenant's places, while no other one does. It counts them by itself."""
    async with database.transaction() as connection:
        await connection.execute(_HOLD_ALONE, [[tenant_id]])
        await wall.stand(connection)
        yield connection


async def count(connection: Connection, *places: Place) -> None:
    """Brings places to their next generations, at the end of a transaction that has found out itself which they are."""
    await connection.execute(_COUNT, [list({place.key for place in places})])


async def sweep(connection: Connection) -> None:
    """Takes away the counts that no cache's entry can be of any more."""
    await connection.execute(_SWEEP)
