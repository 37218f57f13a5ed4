"""Writes an owner's records: reliably, and only while it is the sole owner."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import chain

from agentshell.log.log import MAX_APPEND_BYTES, MAX_APPEND_RECORDS, MAX_PAYLOAD_BYTES, Ack, Lease, Log, Record
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from kfm.error.v1 import error_pb2

_DELAYS_SECONDS = (0.05, 0.2, 0.5, 1.0)


class Journal:
    """Appends to `agent.turns`, with attempts' last outputs and workers' commands, as the holder of `lease`."""

    def __init__(self, log: Log, lease: Lease) -> None:
        self._log = log
        self._lease = lease

    async def write(
        self, records: Sequence[Record], commands: Sequence[Record], said: Sequence[Record] = ()
    ) -> list[Ack]:
        """Appends the records, retrying with the same ids if unconfirmed, so that nothing is written twice.

        What exceeds one append is split into several, in order: `said` first, the commands last. Returns the acks of
        `records`. Raises LOG_UNAVAILABLE, and FENCED if another owner has written one of them.
        """
        if _is_one(said, records, commands):
            return await self._write(said, records, commands)
        for part in _parts(said):
            await self._write(part, [], [])
        acks = [ack for part in _parts(records) for ack in await self._write([], part, [])]
        for part in _parts(commands):
            await self._write([], [], part)
        return acks

    async def _write(self, said: Sequence[Record], records: Sequence[Record], commands: Sequence[Record]) -> list[Ack]:
        for delay in (*_DELAYS_SECONDS, None):
            try:
                acks = await self._append(said, records, commands)
                break
            except AgentShellError as error:
                if delay is None or error.reason != error_pb2.ERROR_REASON_LOG_UNAVAILABLE:
                    raise
            await asyncio.sleep(delay)
        else:
            raise AssertionError
        if any(ack.duplicate for ack in acks):
            raise AgentShellError(error_pb2.ERROR_REASON_FENCED, "another owner of the partition decided first")
        return acks

    async def _append(self, said: Sequence[Record], records: Sequence[Record], commands: Sequence[Record]) -> list[Ack]:
        if not said and not commands:
            return await self._log.append(envelope.TURNS, records, self._lease)
        batches = ((envelope.OUTPUTS, said), (envelope.TURNS, records), (envelope.STEPS, commands))
        given = {topic: batch for topic, batch in batches if batch}
        acks = dict(zip(given, await self._log.append_all(list(given.items()), self._lease), strict=True))
        return acks.get(envelope.TURNS, [])


def _is_one(*batches: Sequence[Record]) -> bool:
    count = sum(map(len, batches))
    if count * MAX_PAYLOAD_BYTES <= MAX_APPEND_BYTES:
        return True
    return count <= MAX_APPEND_RECORDS and sum(len(each.payload) for each in chain(*batches)) <= MAX_APPEND_BYTES


def _parts(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Splits records into parts that each fit in one append."""
    part, size_bytes = list[Record](), 0
    for record in records:
        size_bytes += len(record.payload)
        if len(part) == MAX_APPEND_RECORDS or size_bytes > MAX_APPEND_BYTES:
            yield part
            part, size_bytes = [], len(record.payload)
        part.append(record)
    yield part
