"""Reads through a cache: repeats an earlier answer as long as nothing has changed.

Each place has a generation in Postgres, which every change to it advances in its own transaction (stores/change.py). An
entry records its generations, read no later than its content, and is valid while Postgres has the same ones: checking
that costs one index lookup, if there is an entry. So nothing changed or forgotten comes back, whichever process changed
it, and whether or not the cache was available at the time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from prometheus_client import Counter

from agentshell.db.database import Database
from agentshell.memory.cache.cache import Cache
from agentshell.memory.stores.generations import Generations, State
from agentshell.memory.stores.store import Place
from kfm.memory.v1.memory_service_pb2 import GetWindowResponse, Record, SearchResponse

# A larger entry costs a cache more than it saves.
MAX_ENTRY_BYTES = 256 * 1024

_READS: Final = Counter("agentshell_memory_cache_reads_total", "Reads through the cache.", ["cache", "outcome"])
# A digest of the generations, and when the first of its records expires, in seconds since 1970.
_HEADER = struct.Struct(">32sd")
_FORMAT = 1  # Changes whenever the meaning of an entry's content does.

_Answer = TypeVar("_Answer", bound=Message)


class ReadThrough:
    """Repeats earlier answers. Without a cache, it always asks."""

    def __init__(self, database: Database, cache: Cache | None) -> None:
        self._cache = cache
        self._generations = Generations(database)

    async def read(
        self,
        places: Sequence[Place],
        request: Message,
        answer: type[_Answer],
        make: Callable[[], Awaitable[_Answer]],
        is_lasting: Callable[[_Answer], bool] = lambda _answer: True,
    ) -> _Answer:
        """Returns the answer of `make` to the request about the places: a cached one if it can, a new one otherwise.

        Caches a new answer if it `is_lasting`. The first place is the caller's own.
        """
        if self._cache is None:
            return await make()

        async def stated(state: State | None) -> tuple[_Answer, State]:
            state = state or await self._generations.state(_keys(places))
            return await make(), state

        return await self.read_stated(places, request, answer, stated, is_lasting)

    async def read_stated(
        self,
        places: Sequence[Place],
        request: Message,
        answer: type[_Answer],
        make: Callable[[State | None], Awaitable[tuple[_Answer, State]]],
        is_lasting: Callable[[_Answer], bool] = lambda _answer: True,
    ) -> _Answer:
        """Like `read`, but `make` also returns the state of the places that its answer reflects.

        It is given an earlier state if one had to be read.
        """
        if self._cache is None:
            return (await make(None))[0]
        key = _key(places[0].tenant_id, request)
        kept = await self._cache.get(key)
        state = None if kept is None else await self._generations.state(_keys(places))
        found = None if kept is None or state is None else _opened(kept, state, answer)
        outcome = "hit" if found is not None else "miss" if kept is None else "stale"
        _READS.labels(self._cache.name, outcome).inc()
        if found is not None:
            return found
        made, state = await make(state)
        if is_lasting(made) and made.ByteSize() <= MAX_ENTRY_BYTES:
            await self._cache.put(key, _HEADER.pack(state.digest, _end(made)) + made.SerializeToString())
        return made


def _keys(places: Sequence[Place]) -> list[str]:
    return [place.key for place in places]


def _key(tenant_id: str, request: Message) -> str:
    asked = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return f"agentshell:memory:{_FORMAT}:{tenant_id}:{hashlib.sha256(asked).hexdigest()}"


def _opened(entry: bytes, state: State, answer: type[_Answer]) -> _Answer | None:
    """Returns an entry's answer; None if the generations have changed, or a record in it has expired."""
    try:
        of, end = _HEADER.unpack_from(entry)
        is_good = of == state.digest and state.time < end
        return answer.FromString(entry[_HEADER.size :]) if is_good else None
    except (struct.error, DecodeError):  # Not an entry of ours.
        return None


def _end(answer: Message) -> float:
    """Returns when the first of an answer's records expires."""
    records: list[Record] = []
    match answer:
        case SearchResponse():
            for hit in answer.hits:
                records += [hit.record, *hit.neighbours]
        case GetWindowResponse():
            records.append(answer.summary)
        case _:
            pass
    times = (record.expire_time for record in records if record.HasField("expire_time"))
    return min((time.seconds + time.nanos / 1e9 for time in times), default=float("inf"))
