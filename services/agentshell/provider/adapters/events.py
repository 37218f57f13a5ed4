"""Reads server-sent events whose data is JSON, as they come. Pure.

The SDKs' own readers pass each line through three generators, which costs more than the rest of reading it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json  # Takes a third of the time of json's.

MAX_EVENT_BYTES = 32 * 2**20
_END = b"[DONE]"


class Events:
    """The events of one stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._bytes = 0

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yields the events that the next bytes complete, except the end mark that some vendors send.

        Raises ValueError for data that is not JSON, and for an event of more than MAX_EVENT_BYTES.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:])
                self._bytes += len(line)
            elif self._data and line in (b"", b"\r"):  # A blank line ends an event. Other lines only name it.
                text = b"\n".join(self._data).strip()
                self._data, self._bytes = [], 0
                if text != _END:
                    yield from_json(text)
        if self._bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
