"""Where records go that cannot be handled: `<topic>.dlq`, whole, with what happened to them. They block nobody."""

from __future__ import annotations

from agentshell.log.log import MAX_HEADER_BYTES, MAX_HEADERS, Log, Record, StoredRecord

SUFFIX = ".dlq"


async def bury(log: Log, topic: str, group: str, stored: StoredRecord, reason: str) -> None:
    """Appends the record to the dead letters of its topic; once, however often it is called for the record."""
    headers = {
        **dict(list(stored.record.headers.items())[: MAX_HEADERS - 5]),
        "dlq-topic": topic,
        "dlq-partition": str(stored.partition),
        "dlq-offset": str(stored.offset),
        "dlq-group": group,
        "dlq-reason": (reason or "unknown").encode()[:MAX_HEADER_BYTES].decode(errors="ignore"),
    }
    dead = Record(stored.record.key, stored.record.record_id, stored.record.payload, headers)
    await log.append(topic + SUFFIX, [dead])
