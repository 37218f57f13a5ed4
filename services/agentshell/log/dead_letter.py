"""Dead letters: records that cannot be handled go to `<topic>.dlq`, complete, with the reason, and block nobody.

A log is append-only, so a dead letter is settled by a further record that names it and has its key, and so is in its
partition. Folding the topic yields the unsettled dead letters. A replay first appends a claim, so that a concurrent
drop comes either before it or too late.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from agentshell.log.log import MAX_HEADER_BYTES, MAX_HEADERS, Log, Record, StoredRecord
from agentshell.mesh import ids
from agentshell.mesh.errors import AgentShellError
from kfm.admin.v1.admin_service_pb2 import (
    SETTLEMENT_DROPPED,
    SETTLEMENT_PENDING,
    SETTLEMENT_REPLAYED,
    DeadLetter,
    Settlement,
)
from kfm.error.v1 import error_pb2

SUFFIX = ".dlq"

_OURS = "dlq-"  # prefix of the headers that a record has only as a dead letter
_OUR_HEADERS = 7
_SETTLES = "dlq-settles"
_SETTLEMENT = "dlq-settlement"
_CLAIMED, _REPLAYED, _DROPPED = "claimed", "replayed", "dropped"  # Values of that header.
_READ_RECORDS = 32  # of up to 1 MiB each
_WINDOW_LETTERS = 1000


async def bury(
    log: Log, topic: str, group: str, stored: StoredRecord, reason: str, *, stack: str = "", attempts: int = 1
) -> None:
    """Appends the record to the dead letters of its topic, once, however often it is called for the record.

    Keeps the first 255 bytes of `reason`, and the last lines of `stack` that fit in 255 bytes.
    """
    headers = {
        **dict(list(stored.record.headers.items())[: MAX_HEADERS - _OUR_HEADERS]),
        "dlq-topic": topic,
        "dlq-partition": str(stored.partition),
        "dlq-offset": str(stored.offset),
        "dlq-group": group,
        "dlq-reason": _first(reason) or "unknown",
        "dlq-attempts": str(attempts),
    }
    if lines := _last_lines(stack):
        headers["dlq-stack"] = lines
    dead = Record(stored.record.key, stored.record.record_id, stored.record.payload, headers)
    await log.append(topic + SUFFIX, [dead])


class Letters:
    """The first `limit` dead letters of a partition, by record id; `claimed` are those being replayed."""

    def __init__(self, limit: int) -> None:
        self.by_id: dict[bytes, DeadLetter] = {}
        self.claimed: set[bytes] = set()
        self._limit = limit

    def fold(self, stored: StoredRecord) -> None:
        """Folds the next record: a dead letter, or the settlement of one. The first settlement counts."""
        record_id, headers = stored.record.record_id, stored.record.headers
        if settled_id := headers.get(_SETTLES):
            self._settle(bytes.fromhex(settled_id), headers[_SETTLEMENT])
        elif "dlq-topic" in headers and len(self.by_id) < self._limit:
            self.by_id.setdefault(record_id, _letter(stored))

    def _settle(self, record_id: bytes, how: str) -> None:
        letter = self.by_id.get(record_id)
        if letter is None or letter.settlement != SETTLEMENT_PENDING:
            return
        if how == _CLAIMED:
            self.claimed.add(record_id)
        elif how == _REPLAYED:
            letter.settlement = SETTLEMENT_REPLAYED
        elif record_id not in self.claimed:
            letter.settlement = SETTLEMENT_DROPPED


async def pending(log: Log, topic: str, partition: int, offset: int) -> AsyncGenerator[DeadLetter]:
    """Yields a partition's unsettled dead letters, starting at `offset` in the `.dlq`, without their payloads.

    It holds a thousand at a time in memory, and reads the partition once per thousand.
    """
    next_offset: int | None = offset
    while next_offset is not None:
        letters, next_offset = await _read(log, topic, partition, next_offset, _WINDOW_LETTERS)
        for letter in letters.by_id.values():
            if letter.settlement == SETTLEMENT_PENDING:
                yield letter


async def find(log: Log, dead_letter_id: str) -> tuple[DeadLetter, Record]:
    """Returns a dead letter, and the original record. Raises DEAD_LETTER_NOT_FOUND."""
    letter, record, _ = await _find(log, dead_letter_id)
    return letter, record


async def _find(log: Log, dead_letter_id: str) -> tuple[DeadLetter, Record, bool]:
    """Like `find`, and returns whether it is claimed for a replay."""
    topic, partition, offset = place(dead_letter_id)
    letters, _ = await _read(log, topic, partition, offset, 1)
    letter = next(iter(letters.by_id.values()), None)
    if letter is None or letter.dead_letter_id != dead_letter_id:
        raise AgentShellError(
            error_pb2.ERROR_REASON_DEAD_LETTER_NOT_FOUND,
            f"there is no dead letter {dead_letter_id!r}; ListDeadLetters lists the dead letters that exist",
            metadata={"dead_letter_id": dead_letter_id},
        )
    [stored] = await log.read(topic + SUFFIX, partition, offset, 1, 0.0)
    buried = stored.record
    headers = {name: value for name, value in buried.headers.items() if not name.startswith(_OURS)}
    record = Record(buried.key, buried.record_id, buried.payload, headers)
    return letter, record, record.record_id in letters.claimed


async def settle(log: Log, dead_letter_id: str, settlement: Settlement.ValueType) -> Settlement.ValueType:
    """Settles a dead letter. Returns how it is settled: the first settlement counts. Raises DEAD_LETTER_NOT_FOUND.

    A replay appends the record to its topic, atomically with the settlement if the log has transactions. The copy has a
    new id, the same each time. After LOG_UNAVAILABLE, settle again: a replay that was claimed but not made is then
    made, whichever settlement is requested.
    """
    letter, record, is_claimed = await _find(log, dead_letter_id)
    if letter.settlement == SETTLEMENT_PENDING and not is_claimed:
        how = _CLAIMED if settlement == SETTLEMENT_REPLAYED else _DROPPED
        await log.append(letter.topic + SUFFIX, [_mark(record, "settles", how)])
        letter, record, _ = await _find(log, dead_letter_id)
    if letter.settlement != SETTLEMENT_PENDING:
        return letter.settlement
    replay_id = ids.record_id(f"replays {record.record_id.hex()}")
    replay = Record(record.key, replay_id, record.payload, record.headers)
    await log.append_all([(letter.topic, [replay]), (letter.topic + SUFFIX, [_mark(record, "replayed", _REPLAYED)])])
    return SETTLEMENT_REPLAYED


def place(dead_letter_id: str) -> tuple[str, int, int]:
    """Returns the topic, and the partition and offset in its `.dlq`, from the id of a dead letter."""
    topic, partition, offset = dead_letter_id.rsplit("/", 2)
    return topic, int(partition), int(offset)


async def _read(log: Log, topic: str, partition: int, offset: int, limit: int) -> tuple[Letters, int | None]:
    """Returns the first dead letters from `offset` on, as they are now, and the offset of the next, or None."""
    letters = Letters(limit)
    async for stored in _records(log, topic, partition, offset):
        letters.fold(stored)
    if not letters.by_id:
        return letters, None
    next_offset = place(list(letters.by_id.values())[-1].dead_letter_id)[2] + 1
    async for stored in _records(log, topic, partition, 0):
        if stored.offset >= offset:
            break
        letters.by_id.pop(stored.record.record_id, None)  # Buried twice, in a log that does not drop repeated ids.
    return letters, next_offset


def _mark(record: Record, prefix: str, how: str) -> Record:
    """Returns the record that settles a dead letter; of several with one prefix, the first counts."""
    letter_id = record.record_id.hex()
    payload = b"\x00"  # A payload may not be empty.
    headers = {_SETTLES: letter_id, _SETTLEMENT: how}
    return Record(record.key, ids.record_id(f"{prefix} {letter_id}"), payload, headers)


async def _records(log: Log, topic: str, partition: int, offset: int) -> AsyncGenerator[StoredRecord]:
    while records := await log.read(topic + SUFFIX, partition, offset, _READ_RECORDS, 0.0):
        for stored in records:
            yield stored
        offset = records[-1].offset + 1


def _letter(stored: StoredRecord) -> DeadLetter:
    record, headers = stored.record, stored.record.headers
    letter = DeadLetter(
        dead_letter_id=f"{headers['dlq-topic']}/{stored.partition}/{stored.offset}",
        topic=headers["dlq-topic"],
        partition=int(headers["dlq-partition"]),
        offset=int(headers["dlq-offset"]),
        group=headers["dlq-group"],
        message=headers["dlq-reason"],
        stack=headers.get("dlq-stack", ""),
        attempt_count=int(headers.get("dlq-attempts", "1")),  # Earlier releases did not count.
        key=record.key,
        type=headers.get("type", ""),
        traceparent=headers.get("traceparent", ""),
        settlement=SETTLEMENT_PENDING,
    )
    letter.bury_time.FromDatetime(stored.append_time)
    return letter


def _first(text: str) -> str:
    return _packed(text)[:MAX_HEADER_BYTES].decode(errors="ignore")


def _last_lines(text: str) -> str:
    packed = _packed(text.strip())
    if len(packed) <= MAX_HEADER_BYTES:
        return packed.decode()
    end = packed[-MAX_HEADER_BYTES:].decode(errors="ignore")
    return end.partition("\n")[2] or end  # No partial line, unless that is all there is.


def _packed(text: str) -> bytes:
    """Encodes any text so that a header can hold it: burying must not fail."""
    return text.replace("\0", "").encode(errors="replace")
