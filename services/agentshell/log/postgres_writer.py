"""The writer of a process: queued appends go together, in one round trip and one commit."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from agentshell.db.binary import bigints_of, blobs, booleans_of, documents, integers, texts, time_at
from agentshell.db.database import Database
from agentshell.log.log import Record
from agentshell.log.reach import reach, unavailable
from agentshell.log.tail import Tail

MAX_BATCH_RECORDS = 1000
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_WAITING_RECORDS = 10_000
MAX_WAITING_BYTES = 16 * 1024 * 1024
APPEND_SECONDS = 10.0

_APPEND = (
    "SELECT array_agg(record_offset), array_agg(append_time), array_agg(duplicate)"
    " FROM log.append_fresh($1::boolean, $2::integer[], $3::text[], $4::bytea[], $5::jsonb[], $6::bytea[])"
)


_Identity = tuple[int, bytes]  # The ids of the partition and the record.


class Row(NamedTuple):
    """A record on its way into a partition."""

    tail: Tail
    record: Record


class Place(NamedTuple):
    """The offset of a record, and the time of its append."""

    offset: int
    append_time: datetime
    duplicate: bool


@dataclass(slots=True, eq=False)
class _Append:
    rows: Sequence[Row]
    size_bytes: int
    done: asyncio.Future[list[Place]]


class PostgresWriter:
    """Appends for the whole process, on its own connection, one batch at a time.

    There is no timer: what arrives while a batch is under way forms the next one. `relaxed` does not wait for the disk.
    `stored` is called with what each batch wrote, before the callers of `append` resume.
    """

    def __init__(
        self, database: Database, stored: Callable[[Sequence[Row], Sequence[Place]], None], *, relaxed: bool
    ) -> None:
        self._statement = database.statement(_APPEND)
        self._stored = stored
        self._relaxed = relaxed
        self._waiting: deque[_Append] = deque()
        self._waiting_records = self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False
        self._task = asyncio.create_task(self._run(), name="log writer")

    async def append(self, rows: Sequence[Row]) -> list[Place]:
        """Returns the positions of the records once all are stored. Waits for room if the queue is full.

        Raises LOG_UNAVAILABLE; the records may have been stored nevertheless.
        """
        while self._waiting_records >= MAX_WAITING_RECORDS or self._waiting_bytes >= MAX_WAITING_BYTES:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            raise unavailable("append: it is closed in this process")
        size_bytes = sum(len(record.payload) for _, record in rows)
        append = _Append(rows, size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(append)
        self._waiting_records += len(rows)
        self._waiting_bytes += size_bytes
        self._arrived.set()
        return await append.done

    async def close(self) -> None:
        """Writes what is queued, then ends."""
        self._closed = True
        self._arrived.set()
        await self._task
        await self._statement.close()

    async def _run(self) -> None:
        while self._waiting or not self._closed:
            await self._arrived.wait()
            if batch := self._take():
                await self._write(batch)
            elif not self._closed:
                self._arrived.clear()

    def _take(self) -> list[_Append]:
        """Takes the next batch from the queue, in order. An append larger than a batch goes alone."""
        batch: list[_Append] = []
        records = size_bytes = 0
        while self._waiting:
            append = self._waiting[0]
            records += len(append.rows)
            size_bytes += append.size_bytes
            if batch and (records > MAX_BATCH_RECORDS or size_bytes > MAX_BATCH_BYTES):
                break
            self._waiting.popleft()
            self._waiting_records -= len(append.rows)
            self._waiting_bytes -= append.size_bytes
            if not append.done.done():  # Otherwise its caller has given up.
                batch.append(append)
        self._room.set()
        return batch

    async def _write(self, batch: Sequence[_Append]) -> None:
        arrived = [((row.tail.partition_id, row.record.record_id), row) for append in batch for row in append.rows]
        rows: dict[_Identity, Row] = {}
        for identity, row in sorted(arrived, key=_partition_of):
            rows.setdefault(identity, row)
        try:
            async with reach("confirm an append", APPEND_SECONDS):
                stored = await self._send(list(rows.values()))
        except Exception as error:
            for append in batch:
                if not append.done.done():
                    append.done.set_exception(error)
            return
        places = dict(zip(rows, stored, strict=True))
        answers = [places[identity] for identity, _ in arrived]
        if len(rows) < len(arrived):  # An id that is repeated within this batch is a duplicate.
            seen: set[_Identity] = set()
            for at, (identity, _) in enumerate(arrived):
                if identity in seen:
                    answers[at] = answers[at]._replace(duplicate=True)
                seen.add(identity)
        following = iter(answers)
        for append in batch:
            answer = list(islice(following, len(append.rows)))
            if not append.done.done():
                append.done.set_result(answer)
        self._stored(list(rows.values()), stored)  # Appenders resume before readers, and already find the records.

    async def _send(self, rows: list[Row]) -> list[Place]:
        result = await self._statement.run(
            (
                bytes([self._relaxed]),
                integers([tail.partition_id for tail, _ in rows]),
                texts([record.key for _, record in rows]),
                blobs([record.record_id for _, record in rows]),
                documents([_document(tuple(record.headers.items())) for _, record in rows]),
                blobs([record.payload for _, record in rows]),
            )
        )
        offsets, times, duplicates = (result.get_value(0, column) or b"" for column in range(3))
        return list(map(Place, bigints_of(offsets), map(time_at, bigints_of(times)), booleans_of(duplicates)))


@lru_cache(maxsize=1024)
def _document(headers: tuple[tuple[str, str], ...]) -> str | None:
    return json.dumps(dict(headers)) if headers else None


def _partition_of(item: tuple[_Identity, Row]) -> int:
    return item[0][0]
