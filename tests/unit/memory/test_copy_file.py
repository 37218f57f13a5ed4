"""The reader of copy files tells complete ones from truncated ones, and both from other files."""

from __future__ import annotations

from io import BytesIO

import pytest

from agentshell.cli import copy_file
from kfm.memory.v1.memory_service_pb2 import ExportRequest, ExportResponse, Item, Record, StoredMessage, StoredRecord

REQUEST = ExportRequest(user_id="ann")
ITEMS = [
    ExportResponse(item=Item(record=StoredRecord(namespace="user/ann", record=Record(text="x" * 200))), cursor="1"),
    ExportResponse(item=Item(message=StoredMessage(session_id="s", position=1)), cursor="2"),
]


def written(records: int = 1, messages: int = 1) -> tuple[bytes, list[int]]:
    """Returns a file and the end of each of its frames."""
    file, ends = BytesIO(), list[int]()
    copy_file.begin(file, REQUEST)
    ends.append(file.tell())
    for item in ITEMS:
        copy_file.add(file, item)
        ends.append(file.tell())
    copy_file.end(file, records, messages)
    return file.getvalue(), [*ends, file.tell()]


def test_a_file_that_is_cut_anywhere_goes_on_after_its_last_whole_item() -> None:
    content, ends = written()
    for size in range(ends[0], len(content) + 1):
        scan = copy_file.scan(BytesIO(content[:size]))
        whole = sum(end <= size for end in ends[1:3])
        assert scan == copy_file.Scan(
            REQUEST,
            ["", "1", "2"][whole],
            record_count=min(whole, 1),
            message_count=max(whole - 1, 0),
            end=max(end for end in ends if end <= size),
            is_whole=size == len(content),
        )
        assert list(copy_file.items(BytesIO(content[:size]))) == [each.item for each in ITEMS[:whole]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"{}",
        b"\xff" * 20,
        b"not a copy of any memory, but a text of some length",
        written()[0][: written()[1][0] - 1],  # Not even the first frame is complete.
        written()[0][written()[1][0] :],  # The first frame is lost.
        written(records=2)[0],  # An item is lost.
        written()[0] * 2,
        written()[0][: written()[1][0]] + b"\0" * 4096,  # Zeros that a file system leaves for unwritten blocks.
    ],
)
def test_what_is_no_copy_or_a_damaged_one_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        copy_file.scan(BytesIO(content))
