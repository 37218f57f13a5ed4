"""The port of a vector index beside Postgres (one file per index), and the choice of the configured one."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from agentshell.memory.stores.abilities import Abilities
from agentshell.memory.stores.store import Embedding
from agentshell.mesh.config import MemoryConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2


class Point(NamedTuple):
    """A vector in a place, and its id."""

    point_id: uuid.UUID
    place: str
    embedding: Embedding


class VectorIndex(Protocol):
    """Finds near vectors. Methods raise DATABASE_UNAVAILABLE; their effects are complete when they return."""

    abilities: Abilities

    async def prepare(self, dimension: int) -> None:
        """Prepares for vectors of this length."""
        ...

    async def put(self, dimension: int, points: Sequence[Point]) -> None:
        """Adds vectors."""
        ...

    async def nearest(self, place: str, embedding: Embedding, limit: int) -> Sequence[uuid.UUID]:
        """Returns the ids of approximately the nearest vectors in a place, by cosine."""
        ...

    async def remove(self, dimension: int, point_ids: Sequence[uuid.UUID]) -> None:
        """Removes vectors; missing ones are no error."""
        ...

    async def drop(self, dimension: int) -> None:
        """Removes all vectors of this length."""
        ...

    async def count(self, dimension: int) -> int:
        """Returns how many vectors of this length there are."""
        ...

    async def close(self) -> None:
        """Closes the connection."""
        ...


def of(config: MemoryConfig, environment: Mapping[str, str]) -> VectorIndex | None:
    """Returns the configured index; None if Postgres searches the vectors. Raises CONFIG_INVALID."""
    key = environment.get(config.index_key_env) if config.index_key_env else None
    if config.index_key_env and not key:
        raise _invalid("memory.index_key_env", f"names {config.index_key_env!r}, which is not set", "set the variable")
    try:
        match config.store:
            case "pgvector":
                return None
            case "qdrant":
                from agentshell.memory.stores.qdrant import QdrantIndex  # Its client is optional.

                return QdrantIndex.at(config.qdrant_url, key)
            case "weaviate":
                from agentshell.memory.stores.weaviate import WeaviateIndex  # Its client is optional.

                return WeaviateIndex.at(config.weaviate_url, config.weaviate_grpc_port, key)
    except ImportError:
        fix = f"pip install 'agentshell[{config.store}]'"
        raise _invalid("memory.store", f"is {config.store!r} and its client is not installed", fix) from None


@contextmanager
def reaching(name: str, url: str, failures: tuple[type[Exception], ...]) -> Generator[None]:
    """Turns an index's own failures into DATABASE_UNAVAILABLE."""
    try:
        yield
    except failures as error:
        raise unavailable(name, url, error) from error


def unavailable(name: str, url: str, error: Exception) -> AgentShellError:
    """Returns the error for an index that does not answer, or refuses."""
    return AgentShellError(
        error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE,
        f"{name} at {url}: {' '.join(str(error).split())[:500]}; check that it runs, and memory.{name}_url",
        metadata={"store": name},
        cause=error,
    )


def _invalid(key: str, what: str, fix: str) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"configuration key {key!r} {what}; {fix}",
        metadata={"key": key, "fix": fix},
    )
