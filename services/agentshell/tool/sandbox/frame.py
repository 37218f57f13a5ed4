"""What the host and a worker exchange: JSON, after its length in four bytes. Uses only the standard library."""

from __future__ import annotations

import json
import os
from typing import Any, Final

HEADER_BYTES: Final = 4
MAX_BYTES: Final = 4 * 1024 * 1024
_MAX_DESCRIPTORS: Final = 1 << 20


class FrameError(ValueError):
    """The bytes are not a valid frame."""


def encode(value: Any) -> bytes:
    """Returns a frame. Raises FrameError if it would be larger than `MAX_BYTES`."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(content) > MAX_BYTES:
        raise FrameError(f"larger than {MAX_BYTES} bytes")
    return len(content).to_bytes(HEADER_BYTES, "big") + content


def size(header: bytes) -> int:
    """Returns the size of the content that follows a header. Raises FrameError."""
    size = int.from_bytes(header, "big")
    if size > MAX_BYTES:
        raise FrameError(f"larger than {MAX_BYTES} bytes")
    return size


def decode(content: bytes) -> dict[str, Any]:
    """Returns the content of a frame. Raises FrameError for anything but a JSON object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise FrameError("not a JSON object")
    return value  # pyright: ignore[reportUnknownVariableType] - JSON


class Pipe:
    """A worker's two descriptors to the host."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self._write = write

    def send(self, value: Any) -> None:
        """Sends a frame. Raises FrameError and OSError."""
        rest = memoryview(encode(value))
        while rest:
            rest = rest[os.write(self._write, rest) :]

    def receive(self) -> dict[str, Any] | None:
        """Returns the next frame; None at the end. Raises FrameError and OSError."""
        header = self._take(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return None
        return decode(self._take(size(header)))

    def _take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count and (piece := os.read(self._read, count - len(taken))):
            taken += piece
        return bytes(taken)


def answer(said: str, max_bytes: int) -> dict[str, str]:
    """Returns what to tell the host of a call's output: the output itself, or that it is too large."""
    size = len(said.encode("utf-8", "surrogatepass"))
    return {"failed": "output"} if size > max_bytes else {"said": said}


def own() -> Pipe:
    """Returns the pipe to the host that started this process, and closes every other descriptor.

    The standard streams become /dev/null.
    """
    os.closerange(3, _MAX_DESCRIPTORS)
    pipe = Pipe(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    return pipe
