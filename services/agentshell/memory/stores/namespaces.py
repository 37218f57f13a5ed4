"""Which embedders made the vectors of places, and which make the next ones: in Postgres, whatever the store is.

A place changes its embedder in steps: its other slot is empty (`is_clean`); it gets a next space (`propose`), and from
then on every write fills both slots; older records are filled in; reads switch to the other slot (`flip`); the old slot
is cleared.
Whoever changes a place's spaces holds the place alone (change.py), so that no concurrent write relies on the old ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentshell.db.database import Connection
from agentshell.memory.stores.store import Place, Space, SpaceChanged, Spaces

_COLUMNS = "tenant_id, namespace, is_clean, embedder, dimension, slot, next_embedder, next_dimension"
_READ = f"SELECT {_COLUMNS} FROM memory.namespaces WHERE place = ANY (%s)"  # noqa: S608 - a literal
_PAGE = f"SELECT {_COLUMNS} FROM memory.namespaces WHERE place > %s ORDER BY place LIMIT %s"  # noqa: S608 - a literal
_BEGIN = """
    INSERT INTO memory.namespaces (place, tenant_id, namespace, embedder, dimension) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (place) DO NOTHING"""
_PROPOSE = "UPDATE memory.namespaces SET next_embedder = %s, next_dimension = %s WHERE place = %s AND is_clean"
_DROP = """
    UPDATE memory.namespaces SET next_embedder = NULL, next_dimension = NULL, is_clean = false
    WHERE place = %s AND next_embedder IS NOT NULL"""
_FLIP = """
    UPDATE memory.namespaces SET embedder = next_embedder, dimension = next_dimension, slot = 3 - slot,
        next_embedder = NULL, next_dimension = NULL, is_clean = false
    WHERE place = %s AND next_embedder IS NOT NULL"""
_CLEANED = "UPDATE memory.namespaces SET is_clean = true WHERE place = %s AND next_embedder IS NULL"

_FORGET = "DELETE FROM memory.namespaces WHERE place = ANY (%s) AND next_embedder IS NULL AND is_clean"


class State(NamedTuple):
    """A place's row. `is_clean`: the slot that is not read is empty; it means nothing while there is a next space."""

    place: Place
    spaces: Spaces
    is_clean: bool


async def read(connection: Connection, places: Sequence[Place]) -> Mapping[Place, Spaces]:
    """Returns the spaces of the places that have any."""
    cursor = await connection.execute(_READ, [[place.key for place in places]])
    states = [_state(*row) for row in await cursor.fetchall()]
    return {state.place: state.spaces for state in states}


async def page(connection: Connection, after: str, limit: int) -> Sequence[State]:
    """Returns the states of all tenants' places, by key, after the key `after`."""
    cursor = await connection.execute(_PAGE, [after, limit])
    return [_state(*row) for row in await cursor.fetchall()]


async def begin(connection: Connection, place: Place, space: Space) -> None:
    """Gives a place its first space, if it has none."""
    await connection.execute(_BEGIN, [place.key, *place, space.embedder, space.dimension])


async def check(connection: Connection, place: Place, expected: Spaces) -> None:
    """Raises SpaceChanged if a place has other spaces than expected.

    In a transaction that holds the place (change.py), it keeps them until the end.
    """
    if (await read(connection, [place])).get(place) != expected:
        raise SpaceChanged


async def propose(connection: Connection, place: Place, space: Space) -> None:
    """Makes every write also fill the other slot, which must be clean."""
    await connection.execute(_PROPOSE, [space.embedder, space.dimension, place.key])


async def drop(connection: Connection, place: Place) -> None:
    """Withdraws the next space."""
    await connection.execute(_DROP, [place.key])


async def flip(connection: Connection, place: Place) -> None:
    """Switches reads to the other slot, and writes to that slot alone."""
    await connection.execute(_FLIP, [place.key])


async def cleaned(connection: Connection, place: Place) -> None:
    """Records that the other slot is empty."""
    await connection.execute(_CLEANED, [place.key])


async def forget(connection: Connection, places: Sequence[Place]) -> None:
    """Forgets these places, which hold nothing, except those with a slot that may still be written."""
    await connection.execute(_FORGET, [[place.key for place in places]])


def _state(
    tenant_id: str,
    namespace: str,
    is_clean: bool,
    embedder: str,
    dimension: int,
    slot: int,
    next_embedder: str | None,
    next_dimension: int | None,
) -> State:
    following = Space(next_embedder, next_dimension or 0, 3 - slot) if next_embedder else None
    return State(Place(tenant_id, namespace), Spaces(Space(embedder, dimension, slot), following), is_clean)
