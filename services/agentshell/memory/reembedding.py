"""Re-embeds the namespaces whose embedder is no longer the configured one.

It runs in the background, without downtime: reads use the old vectors until all the new ones exist. It may be stopped
at any time, and resumes where it was. One process does it at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import psycopg
import structlog

from agentshell.db.database import Database
from agentshell.memory import embedding
from agentshell.memory.embedders.choice import Choice
from agentshell.memory.embedders.embedder import Embedder
from agentshell.memory.stores import namespaces
from agentshell.memory.stores.change import change
from agentshell.memory.stores.namespaces import State
from agentshell.memory.stores.store import Embedding, Missing, Place, Space, Store, Vectors
from agentshell.mesh import call
from agentshell.mesh.call import Principal
from agentshell.mesh.errors import AgentShellError

_log = structlog.get_logger("agentshell.memory")

# The principal that asks the Provider service for vectors, on behalf of their tenant.
_PRINCIPAL = "memory"
_BATCH_RECORDS = 64
_CLEARED_RECORDS = 500
_PAGE_PLACES = 500
# How long it rests as a multiple of how long it has worked, to leave the machine to others.
_REST = 1.0
_LOCK = 0x6B666D2E656D  # "kfm.em": held by the process that re-embeds.
_LOCK_SECONDS = 5.0
_FIRST_WAIT_SECONDS, _LAST_WAIT_SECONDS = 1.0, 300.0


class Reembedding:
    """Moves all namespaces to their configured embedders, and then ends until the next start."""

    def __init__(self, database: Database, store: Store, choice: Choice) -> None:
        self._database = database
        self._store = store
        self._choice = choice

    async def run(self) -> None:
        """Tries until every namespace has its embedder. May be cancelled at any point."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                if not await self.bring_all():
                    return
            except (AgentShellError, psycopg.Error) as error:
                _log.warning("vectors stay unchanged for now", detail=str(error))
            await asyncio.sleep(wait)
            wait = min(wait * 2, _LAST_WAIT_SECONDS)

    async def bring_all(self) -> int:
        """Moves every namespace to its embedder, one after the other; returns how many could not be moved.

        Waits until no other process does it. Raises DATABASE_UNAVAILABLE.
        """
        failed = 0
        async with self._alone():
            after = ""
            while states := await self._page(after):
                for state in states:
                    failed += not await self._bring(state)
                after = states[-1].place.key
        return failed

    @asynccontextmanager
    async def _alone(self) -> AsyncGenerator[None]:
        """Holds the lock shared by all processes; Postgres releases it when the connection ends, however it does."""
        connection = await self._database.dedicated()
        try:
            while True:
                cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK])
                if await cursor.fetchone() == (True,):
                    break
                await asyncio.sleep(_LOCK_SECONDS)
            yield
        finally:
            await connection.close()

    async def _page(self, after: str) -> list[State]:
        async with self._database.connection() as connection:
            return list(await namespaces.page(connection, after, _PAGE_PLACES))

    async def _bring(self, state: State) -> bool:
        """Moves a namespace to its embedder; returns whether that is done. A failure does not stop the others."""
        place, (current, following) = state.place, state.spaces
        try:
            embedder = self._choice.wanted(place.namespace)
            is_there = current[:2] == (embedder.name, embedder.dimension)
            if is_there and following is None and state.is_clean:
                return True
            if self._store.vectors is None:
                _log.warning("the store keeps a namespace's first embedder", place=place.key, embedder=current.embedder)
                return True
            target = None if is_there else Space(embedder.name, embedder.dimension, 3 - current.slot)
            with call.scope(Principal(place.tenant_id, _PRINCIPAL), None):
                await _Change(self._database, self._store, self._store.vectors, place).run(state, embedder, target)
        except AgentShellError as error:
            _log.warning(
                "a namespace's vectors stay unchanged for now", place=place.key, reason=error.name, detail=error.message
            )
            return False
        return True


class _Change:
    """One namespace's change of embedder."""

    def __init__(self, database: Database, store: Store, vectors: Vectors, place: Place) -> None:
        self._database = database
        self._store = store
        self._vectors = vectors
        self._place = place

    async def run(self, state: State, embedder: Embedder, target: Space | None) -> None:
        """Moves from any state that an earlier run may have left to the target; with None, only cleans up."""
        current, following = state.spaces
        if following is not None and following != target:
            async with change(self._database, self._place, alone=True) as connection:
                await namespaces.drop(connection, self._place)
            following = None
        if following is None:
            await self._clear(3 - current.slot)
        if target is None:
            return
        if following is None:
            await self._store.prepare(target)
            async with change(self._database, self._place, alone=True) as connection:
                await namespaces.propose(connection, self._place, target)
        _log.info("replacing vectors", place=self._place.key, embedder=target.embedder)
        nothing_there: set[Missing] = set()
        while not await self._flipped(target, nothing_there):
            nothing_there |= await self._fill(embedder, target)
        _log.info("vectors replaced", place=self._place.key, embedder=target.embedder)
        await self._clear(current.slot)

    async def _fill(self, embedder: Embedder, target: Space) -> set[Missing]:
        """Gives each record its new vector; returns those whose text has nothing to compare by."""
        nothing_there: set[Missing] = set()
        after = ""
        while found := await self._missing(target.slot, after):
            began = time.monotonic()
            texts = [embedding.text(each.title, each.text) for each in found]
            made = await embedder.embed(texts, "document")
            vectors: list[tuple[Missing, Embedding]] = []
            for each, vector in zip(found, made, strict=True):
                if vector is None:
                    nothing_there.add(each)
                else:
                    vectors.append((each, vector))
            await self._vectors.fill(self._place, target.slot, vectors)
            after = found[-1].record_id
            await asyncio.sleep((time.monotonic() - began) * _REST)
        return nothing_there

    async def _missing(self, slot: int, after: str) -> Sequence[Missing]:
        async with self._database.connection() as connection:
            return await self._vectors.missing(connection, self._place, slot, after, _BATCH_RECORDS)

    async def _flipped(self, target: Space, nothing_there: set[Missing]) -> bool:
        """Switches reads to the new vectors if every record that can have one does; returns whether it did."""
        async with change(self._database, self._place, alone=True) as connection:
            left = await self._vectors.missing(connection, self._place, target.slot, "", len(nothing_there) + 1)
            if not nothing_there.issuperset(left):
                return False
            await namespaces.flip(connection, self._place)
            return True

    async def _clear(self, slot: int) -> None:
        """Clears a slot that nobody reads."""
        after: str | None = ""
        is_empty = False
        while not is_empty:
            is_empty = True
            while (after := await self._vectors.clear(self._place, slot, after or "", _CLEARED_RECORDS)) is not None:
                is_empty = False  # Locked records were skipped: look again.
        async with change(self._database, self._place) as connection:
            await namespaces.cleaned(connection, self._place)
