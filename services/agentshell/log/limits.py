"""What a record may be: checked by every driver, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Raises TOO_LARGE or INVALID_REQUEST for what a log does not take; the message names the record and the limit."""
    count = total_bytes = 0
    for topic, records in batches:
        for index, record in enumerate(records):
            _check_record(f"{topic}[{index}]", record)
            count += 1
            total_bytes += len(record.payload)
    if count > MAX_APPEND_RECORDS:
        raise invalid("records", f"{count} in one append; append at most {MAX_APPEND_RECORDS} at a time")
    if total_bytes > MAX_APPEND_BYTES:
        raise _too_large("an append", total_bytes, MAX_APPEND_BYTES)


def _check_record(where: str, record: Record) -> None:
    if not record.payload:
        raise invalid(f"{where}.payload", "is empty; give at least one byte")
    if len(record.payload) > MAX_PAYLOAD_BYTES:
        raise _too_large(f"{where}.payload", len(record.payload), MAX_PAYLOAD_BYTES)
    if len(record.record_id) != RECORD_ID_BYTES:
        raise invalid(f"{where}.record_id", f"has {len(record.record_id)} bytes; give {RECORD_ID_BYTES}")
    _check_text(f"{where}.key", record.key, MAX_KEY_BYTES)
    if record.headers:
        if len(record.headers) > MAX_HEADERS:
            raise invalid(f"{where}.headers", f"are {len(record.headers)}; give at most {MAX_HEADERS}")
        for name, value in record.headers.items():
            _check_text(f"{where}.headers[{name!r}], its name,", name, MAX_HEADER_BYTES)
            _check_text(f"{where}.headers[{name!r}]", value, MAX_HEADER_BYTES)


def _check_text(where: str, text: str, max_bytes: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise invalid(where, "is not Unicode text (it has a lone surrogate)") from None
    if not 1 <= size <= max_bytes:
        raise invalid(where, f"has {size} bytes; give 1 to {max_bytes}")
    if "\0" in text:
        raise invalid(where, "has a NUL character; remove it")


def _too_large(where: str, size: int, limit: int) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_TOO_LARGE,
        f"{where} has {size} bytes; the log takes {limit}: split it, or store it elsewhere and append a reference",
        metadata={"limit_bytes": str(limit)},
    )
