"""Checks the limits of records, in every driver, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from agentshell.log.log import (
    MAX_APPEND_BYTES,
    MAX_APPEND_RECORDS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    RECORD_ID_BYTES,
    Record,
)
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2


def check(batches: Sequence[tuple[str, Sequence[Record]]]) -> None:
    """Raises TOO_LARGE or INVALID_REQUEST for an append over the limits; the message names the record and the limit."""
    count = total_bytes = 0
    for topic, records in batches:
        for index, record in enumerate(records):
            _check_record(topic, index, record)
            count += 1
            total_bytes += len(record.payload)
    if count > MAX_APPEND_RECORDS:
        raise invalid("records", f"{count} in one append; append at most {MAX_APPEND_RECORDS} at a time")
    if total_bytes > MAX_APPEND_BYTES:
        raise _too_large("an append", total_bytes, MAX_APPEND_BYTES)


def _check_record(topic: str, index: int, record: Record) -> None:
    key, record_id, payload, headers = record
    if not payload:
        raise invalid(f"{topic}[{index}].payload", "is empty; give at least one byte")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise _too_large(f"{topic}[{index}].payload", len(payload), MAX_PAYLOAD_BYTES)
    if len(record_id) != RECORD_ID_BYTES:
        raise invalid(f"{topic}[{index}].record_id", f"has {len(record_id)} bytes; give {RECORD_ID_BYTES}")
    if problem := _problem(key, MAX_KEY_BYTES):
        raise invalid(f"{topic}[{index}].key", problem)
    if len(headers) > MAX_HEADERS:
        raise invalid(f"{topic}[{index}].headers", f"has {len(headers)} entries; give at most {MAX_HEADERS}")
    for name, value in headers.items():
        if problem := _problem(name, MAX_HEADER_BYTES):
            raise invalid(f"{topic}[{index}].headers[{name!r}], its name,", problem)
        if problem := _problem(value, MAX_HEADER_BYTES):
            raise invalid(f"{topic}[{index}].headers[{name!r}]", problem)


@lru_cache(maxsize=1024)  # Nearly all keys and headers have been seen before.
def _problem(text: str, max_bytes: int) -> str:
    """Returns what is wrong with a text, or an empty string."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "is not Unicode text (it has a lone surrogate)"
    if not 1 <= size <= max_bytes:
        return f"has {size} bytes; give 1 to {max_bytes}"
    return "has a NUL character; remove it" if "\0" in text else ""


def _too_large(where: str, size: int, limit: int) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_TOO_LARGE,
        f"{where} has {size} bytes; the log accepts {limit}: split it, or store it elsewhere and append a reference",
        metadata={"limit_bytes": str(limit)},
    )
