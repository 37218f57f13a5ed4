"""Server-sent events come whole, however the bytes of a stream are split."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.provider.adapters import events
from agentshell.provider.adapters.events import Events

VALUES = st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3)


@settings(max_examples=100)
@given(st.lists(VALUES, max_size=5), st.sampled_from(["\n", "\r\n"]), st.data())
def test_events_are_the_same_wherever_a_stream_is_cut(sent: list[object], end: str, data: st.DataObject) -> None:
    frames = [f": ping{end}{end}event: delta{end}data: {json.dumps(v, ensure_ascii=False)}{end}{end}" for v in sent]
    stream = ("".join(frames) + f"data: [DONE]{end}{end}").encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    reader = Events()
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert [event for piece in pieces for event in reader.feed(piece)] == sent


def test_an_event_of_several_lines_is_one() -> None:
    assert list(Events().feed(b'data: {"a":\ndata: 1}\n\n')) == [{"a": 1}]


def test_an_event_that_is_not_ended_is_none() -> None:
    assert list(Events().feed(b'data: {"a": 1}\n')) == []


@pytest.mark.parametrize(("data", "problem"), [(b"data: {nonsense\n\n", "column 2"), (b"data: \xff\n\n", "column 1")])
def test_data_that_is_not_json_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        list(Events().feed(data))


@pytest.mark.parametrize("data", [b"x" * 8, b"data: 12345678\n", b"data: 1\ndata: 2\n"])
def test_an_event_may_not_grow_without_end(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 7)

    with pytest.raises(ValueError, match="more than 7 bytes"):
        list(Events().feed(data))
