"""The vectors of texts and of queries, by the embedder that each place currently has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from agentshell.db.database import Database
from agentshell.memory.embedders.choice import Choice
from agentshell.memory.embedders.embedder import Embedder
from agentshell.memory.stores import namespaces
from agentshell.memory.stores.store import Embedding, Entry, Place, Probe, Space, SpaceChanged, Spaces, Store
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import Record

_log = structlog.get_logger("agentshell.memory")

Done = TypeVar("Done")

# A change of embedder changes a place's spaces twice: when it begins and when it ends.
_ATTEMPTS = 4
# Places' spaces are cached, to save a lookup per call. Using outdated ones raises `SpaceChanged`.
_KNOWN_PLACES = 10_000


class Embeddings:
    """Makes entries to write and probes to search with.

    A place's spaces may change at any time. So a write checks them in its own transaction (`namespaces.check`), a
    store's search checks them in its own snapshot, and `settled` retries either.
    """

    def __init__(self, database: Database, store: Store, choice: Choice) -> None:
        self._database = database
        self._store = store
        self._choice = choice
        self._known: dict[Place, Spaces | None] = {}

    async def settled(self, places: Sequence[Place], attempt: Callable[[], Awaitable[Done]]) -> Done:
        """Retries the attempt until no place's spaces have changed meanwhile, and returns its result.

        Raises OVERLOADED if they keep changing.
        """
        for _ in range(_ATTEMPTS):
            try:
                return await attempt()
            except SpaceChanged:
                for place in places:
                    self._known.pop(place, None)
        raise AgentShellError(
            error_pb2.ERROR_REASON_OVERLOADED,
            f"the embedder of {', '.join(place.namespace for place in places)} keeps changing: do processes with "
            "different memory.namespaces share one database?",
        )

    async def spaces(self, place: Place) -> Spaces:
        """Returns a place's spaces. A new place gets the configured one, from now on."""
        if found := self._known.get(place) or (await self._read([place]))[place]:
            return found
        embedder = self._choice.wanted(place.namespace)
        space = Space(embedder.name, embedder.dimension)
        await self._store.prepare(space)
        async with self._database.connection() as connection:
            await namespaces.begin(connection, place, space)
        begun = (await self._read([place]))[place]
        assert begun is not None  # noqa: S101 - no place loses its space
        return begun

    async def entries(self, place: Place, records: Sequence[Record]) -> tuple[Spaces, list[Entry]]:
        """Returns the place's spaces, and the records with their vectors."""
        spaces = await self.spaces(place)
        texts = [text(record.source.title, record.text) for record in records]
        current = await self._embedder(spaces.current).embed(texts, "document")
        other = await self._next(spaces.next, texts) if spaces.next else [None] * len(texts)
        first, second = (current, other) if spaces.current.slot == 1 else (other, current)
        return spaces, [Entry(*each) for each in zip(records, first, second, strict=True)]

    async def probes(self, places: Sequence[Place], query: str) -> tuple[list[Probe], list[Place]]:
        """Returns the probes for the places, and the places that never had vectors."""
        known = {place: self._known[place] for place in places if place in self._known}
        if unknown := [place for place in places if place not in known]:
            known |= await self._read(unknown)
        by_space: dict[Space, list[Place]] = {}
        bare: list[Place] = []
        for place, spaces in known.items():
            if spaces:
                by_space.setdefault(spaces.current, []).append(place)
            else:
                bare.append(place)
        made: dict[Embedder, Embedding | None] = {}
        for embedder in map(self._embedder, by_space):
            if embedder not in made:
                [made[embedder]] = await embedder.embed([query], "query")
        vectors = {space: made[self._embedder(space)] for space in by_space}
        return [Probe(by_space[space], space, vector) for space, vector in vectors.items() if vector is not None], bare

    def _embedder(self, space: Space) -> Embedder:
        return self._choice.named(space.embedder, space.dimension)

    async def _next(self, space: Space, texts: Sequence[str]) -> Sequence[Embedding | None]:
        """Returns vectors for the next space. If that fails, the write goes on, and they are filled in later."""
        try:
            return await self._embedder(space).embed(texts, "document")
        except AgentShellError as error:
            _log.warning("next embedder failed", embedder=space.embedder, error=error.message)
            return [None] * len(texts)

    async def _read(self, places: Sequence[Place]) -> Mapping[Place, Spaces | None]:
        """Reads and caches the places' spaces; None for a place that has none yet."""
        async with self._database.connection() as connection:
            found = await namespaces.read(connection, places)
        read = {place: found.get(place) for place in places}
        if len(self._known) + len(read) > _KNOWN_PLACES:
            self._known.clear()
        self._known |= read
        return read


def text(title: str, of_record: str) -> str:
    """Returns what of a record is embedded: the headings above it, and its text."""
    return f"{title}\n{of_record}"
