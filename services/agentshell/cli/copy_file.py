"""A copy of memory in a file: a sequence of `kfm.memory.v1.CopyFrame`, each preceded by its length."""

from __future__ import annotations

from collections.abc import Generator
from io import BytesIO
from typing import BinaryIO, NamedTuple

from google.protobuf import proto
from google.protobuf.message import DecodeError

from kfm.memory.v1.copy_pb2 import CopyBegin, CopyEnd, CopyFrame
from kfm.memory.v1.memory_service_pb2 import ExportRequest, ExportResponse, Item

FORMAT = 1
# Many times the largest message that a mesh accepts: anything longer is not one of our frames.
_MAX_FRAME_BYTES = 256 * 1024 * 1024
_MAX_LENGTH_BITS = 28


class Scan(NamedTuple):
    """What a file holds: the request it answers, the cursor and byte to resume at, and whether it is complete."""

    request: ExportRequest
    cursor: str
    record_count: int
    message_count: int
    end: int
    is_whole: bool


def begin(file: BinaryIO, request: ExportRequest) -> None:
    """Writes the first frame."""
    frame = CopyFrame(begin=CopyBegin(format=FORMAT, request=request))
    frame.begin.create_time.GetCurrentTime()
    _write(file, frame)


def add(file: BinaryIO, item: ExportResponse) -> None:
    """Writes one response of Export."""
    _write(file, CopyFrame(item=item))


def end(file: BinaryIO, record_count: int, message_count: int) -> None:
    """Writes the last frame."""
    _write(file, CopyFrame(end=CopyEnd(record_count=record_count, message_count=message_count)))


def scan(file: BinaryIO) -> Scan:
    """Scans a file from its beginning. Raises ValueError if it is not a copy of memory, or a damaged one."""
    counts = {"record": 0, "message": 0}
    request, cursor, at, is_whole = ExportRequest(), "", 0, False
    for frame, frame_end in _frames(file):
        kind = frame.WhichOneof("frame")
        if is_whole or (kind == "begin") != (at == 0):
            raise ValueError(f"it is not a copy of memory, or it is damaged, at byte {at}")
        match kind:
            case "begin":
                if frame.begin.format != FORMAT:
                    raise ValueError(f"its format is {frame.begin.format}; this release reads format {FORMAT}")
                request = frame.begin.request
            case "item":
                counts[frame.item.item.WhichOneof("kind") or "record"] += 1
                cursor = frame.item.cursor
            case _:
                is_whole = True
                if (frame.end.record_count, frame.end.message_count) != tuple(counts.values()):
                    raise ValueError("it is damaged: the number of its records and messages is not what its end says")
        at = frame_end
    if at == 0:
        raise ValueError("it is not a copy of memory: it does not begin like one")
    return Scan(request, cursor, counts["record"], counts["message"], at, is_whole)


def items(file: BinaryIO) -> Generator[Item]:
    """Yields the items of a file that `scan` has accepted."""
    for frame, _ in _frames(file):
        if frame.HasField("item"):
            yield frame.item.item


def _write(file: BinaryIO, frame: CopyFrame) -> None:
    whole = BytesIO()
    proto.serialize_length_prefixed(frame, whole)
    file.write(whole.getvalue())


def _frames(file: BinaryIO) -> Generator[tuple[CopyFrame, int]]:
    """Yields each frame and where it ends, up to one that is cut short. Raises ValueError if a frame is damaged."""
    file.seek(0)
    at = 0
    while (content := _content(file, at)) is not None:
        try:
            frame = CopyFrame.FromString(content)
        except DecodeError:
            frame = CopyFrame()
        if frame.WhichOneof("frame") is None:
            raise ValueError(f"it is not a copy of memory, or it is damaged, at byte {at}")
        at = file.tell()
        yield frame, at


def _content(file: BinaryIO, at: int) -> bytes | None:
    """Returns the next frame's bytes, or None if the file ends first. Raises ValueError for an impossible length."""
    length = bits = 0
    while byte := file.read(1):
        length |= (byte[0] & 0x7F) << bits
        bits += 7
        if byte[0] < 0x80:
            break
        if bits > _MAX_LENGTH_BITS:
            length = _MAX_FRAME_BYTES + 1
            break
    else:
        return None
    if length > _MAX_FRAME_BYTES:
        raise ValueError(f"it is not a copy of memory, or it is damaged, at byte {at}")
    content = file.read(length)
    return content if len(content) == length else None
