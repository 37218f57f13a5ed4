from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from agentshell.log.dead_letter import Letters
from agentshell.log.log import Record, StoredRecord
from kfm.admin.v1.admin_service_pb2 import (
    SETTLEMENT_DROPPED,
    SETTLEMENT_PENDING,
    SETTLEMENT_REPLAYED,
    DeadLetter,
    Settlement,
)

_TIME = datetime(2026, 1, 2, tzinfo=UTC)
_NAMES = {"replayed": SETTLEMENT_REPLAYED, "dropped": SETTLEMENT_DROPPED}


def record_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def buried(name: str) -> Record:
    headers = {
        "type": "kfm.turn.v1.TurnRequested",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "dlq-topic": "agent.turns",
        "dlq-partition": "3",
        "dlq-offset": "17",
        "dlq-group": "runtimes",
        "dlq-reason": "undecodable",
        "dlq-attempts": "3",
        "dlq-stack": "line 1\nline 2",
    }
    return Record("acme/s", record_id(name), b"payload", headers)


def settled(name: str, settlement: str) -> Record:
    headers = {"dlq-settles": record_id(name).hex(), "dlq-settlement": settlement}
    return Record("acme/s", record_id(f"settles {name}"), b"\x00", headers)


def folded(records: list[Record], limit: int) -> list[DeadLetter]:
    letters = Letters(limit)
    for offset, record in enumerate(records):
        letters.fold(StoredRecord(5, offset, _TIME, record))
    return list(letters.by_id.values())


def test_a_buried_record_is_a_dead_letter_with_all_that_happened_to_it() -> None:
    expected = DeadLetter(
        dead_letter_id="agent.turns/5/0",
        topic="agent.turns",
        partition=3,
        offset=17,
        group="runtimes",
        message="undecodable",
        stack="line 1\nline 2",
        attempt_count=3,
        key="acme/s",
        type="kfm.turn.v1.TurnRequested",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        settlement=SETTLEMENT_PENDING,
    )
    expected.bury_time.FromDatetime(_TIME)
    assert folded([buried("a")], 1) == [expected]


def test_what_is_neither_buried_nor_a_settlement_is_no_dead_letter() -> None:
    assert folded([Record("k", record_id("a"), b"p"), settled("nobody", "dropped")], 9) == []


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["buried", "claimed", "replayed", "dropped"])), max_size=30
    ),
    st.integers(1, 7),
)
def test_the_first_letters_are_kept_each_once_with_its_first_settlement(
    history: list[tuple[str, str]], limit: int
) -> None:
    expected: dict[str, Settlement.ValueType] = {}
    claimed: set[str] = set()
    for name, what in history:
        if what == "buried":
            if len(expected) < limit:
                expected.setdefault(name, SETTLEMENT_PENDING)
        elif expected.get(name) == SETTLEMENT_PENDING and what == "claimed":
            claimed.add(name)
        elif expected.get(name) == SETTLEMENT_PENDING and (what, name in claimed) != ("dropped", True):
            expected[name] = _NAMES[what]
    records = [buried(name) if what == "buried" else settled(name, what) for name, what in history]
    letters = folded(records, limit)
    assert [letter.settlement for letter in letters] == list(expected.values())
    first = [history.index((name, "buried")) for name in expected]
    assert [letter.dead_letter_id for letter in letters] == [f"agent.turns/5/{offset}" for offset in first]
