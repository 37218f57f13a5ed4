"""AdminService over a real server and each log driver: dead letters, and who may see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.contract.log_stores import Store
from tests.contract.serving import member, refusal

from agentshell.db.database import Database
from agentshell.gateway.admin_service import AdminService
from agentshell.gateway.turn_index import TurnIndex
from agentshell.log.dead_letter import SUFFIX, bury
from agentshell.log.log import MAX_HEADER_BYTES, MAX_HEADERS, Log, Record, StoredRecord, Topic, partition_of
from agentshell.mesh import call, channel, ids
from agentshell.mesh.call import Principal
from kfm.admin.v1 import admin_service_pb2 as pb
from kfm.admin.v1.admin_service_pb2_grpc import AdminServiceStub, add_AdminServiceServicer_to_server
from kfm.error.v1 import error_pb2

if TYPE_CHECKING:
    from kfm.admin.v1.admin_service_pb2_grpc import AdminServiceAsyncStub

_TOPIC = "agent.turns"
_PARTITIONS = 2
_WAIT_SECONDS = 60.0
_REQUESTS: dict[str, Any] = {
    "ListDeadLetters": pb.ListDeadLettersRequest(),
    "GetDeadLetter": pb.GetDeadLetterRequest(dead_letter_id="agent.turns/0/0"),
    "ReplayDeadLetter": pb.ReplayDeadLetterRequest(dead_letter_id="agent.turns/0/0"),
    "DropDeadLetter": pb.DropDeadLetterRequest(dead_letter_id="agent.turns/0/0"),
    "RebuildTurns": pb.RebuildTurnsRequest(),
}


@dataclass(frozen=True, slots=True)
class Served:
    """The service over its own log. `admin` sends only the credentials given to a call."""

    log: Log
    admin: AdminServiceAsyncStub
    operator: AdminServiceAsyncStub
    key: tuple[tuple[str, str]]

    async def bury(self, name: str, **how: Any) -> tuple[StoredRecord, str]:
        """Appends a record and buries it as an owner does. Returns it and the dead letter's id."""
        headers = {"type": "kfm.turn.v1.TurnRequested", "traceparent": "00-1-2-01"}
        stored = await self.append(Record(f"acme/{name}", ids.record_id(name), b"\xff" + name.encode(), headers))
        return stored, await self.rebury(stored, **how)

    async def append(self, record: Record) -> StoredRecord:
        [ack] = await self.log.append(_TOPIC, [record])
        [stored] = await self.log.read(_TOPIC, ack.partition, ack.offset, 1, 0.0)
        return stored

    async def rebury(self, stored: StoredRecord, reason: str = "undecodable", **how: Any) -> str:
        partition = partition_of(stored.record.key, _PARTITIONS)
        end = (await self.log.end_offsets(_TOPIC + SUFFIX))[partition]
        await bury(self.log, _TOPIC, "runtimes", stored, reason, **how)
        return f"{_TOPIC}/{partition}/{end}"

    async def listed(self, page_size: int = 0) -> list[str]:
        """Returns the ids of all unsettled dead letters, page by page."""
        found: list[str] = []
        request = pb.ListDeadLettersRequest(page_size=page_size)
        while True:
            response = await self.operator.ListDeadLetters(request)
            found += [letter.dead_letter_id for letter in response.dead_letters]
            request.page_token = response.next_page_token
            if not request.page_token:
                return found

    async def records(self, key: str) -> list[StoredRecord]:
        return await self.log.read(_TOPIC, partition_of(key, _PARTITIONS), 0, 100, 0.0)


@pytest.fixture
async def served(store: Store, database: Database) -> AsyncGenerator[Served]:
    log = await store.open()
    for topic in (_TOPIC, _TOPIC + SUFFIX):
        await log.ensure_topic(Topic(topic, _PARTITIONS))
    service = AdminService(log, await TurnIndex.open(database), [_TOPIC])
    async with member() as made:
        made.server.add("kfm.admin.v1.AdminService", lambda server: add_AdminServiceServicer_to_server(service, server))
        async with await made.start() as plain, channel.connect(made.mesh_address, made.keyring) as mesh:
            with call.scope(call.OPERATOR, _WAIT_SECONDS):
                yield Served(log, AdminServiceStub(plain), AdminServiceStub(mesh), made.key())


async def test_a_dead_letter_is_shown_whole_with_what_happened_to_it(served: Served) -> None:
    stack = "\n".join(f"line {number}: naïve" for number in range(100))
    stored, dead_letter_id = await served.bury("one", reason="r\0" * 300, stack=stack, attempts=3)
    [listed] = (await served.operator.ListDeadLetters(pb.ListDeadLettersRequest(topic=_TOPIC))).dead_letters
    shown = (await served.operator.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=dead_letter_id))).dead_letter
    expected = pb.DeadLetter(
        dead_letter_id=dead_letter_id,
        topic=_TOPIC,
        partition=stored.partition,
        offset=stored.offset,
        group="runtimes",
        message="r" * MAX_HEADER_BYTES,
        stack="\n".join(stack.splitlines()[-15:]),
        attempt_count=3,
        bury_time=listed.bury_time,
        key="acme/one",
        type="kfm.turn.v1.TurnRequested",
        traceparent="00-1-2-01",
        settlement=pb.SETTLEMENT_PENDING,
    )
    assert listed == expected
    assert listed.bury_time.ToDatetime(stored.append_time.tzinfo) >= stored.append_time
    expected.headers.update(stored.record.headers)
    expected.payload = b"\xffone"
    assert shown == expected


async def test_a_record_with_all_the_headers_that_a_log_takes_can_be_buried(served: Served) -> None:
    headers = {f"{number}": "v" for number in range(MAX_HEADERS)}
    stored = await served.append(Record("k", ids.record_id("r"), b"p", headers))
    dead_letter_id = await served.rebury(stored, reason="\ud800", stack="\0", attempts=2)
    assert await served.listed() == [dead_letter_id]


async def test_a_replayed_record_is_at_the_end_of_its_topic_once_and_its_letter_is_listed_no_more(
    served: Served,
) -> None:
    stored, dead_letter_id = await served.bury("one")
    _, other_id = await served.bury("two")
    request = pb.ReplayDeadLetterRequest(dead_letter_id=dead_letter_id)
    for _ in range(2):
        assert (await served.operator.ReplayDeadLetter(request)).settlement == pb.SETTLEMENT_REPLAYED
    *_, replayed = records = await served.records("acme/one")
    assert [it.record.payload for it in records].count(b"\xffone") == 2
    assert (replayed.record.key, replayed.record.headers) == (stored.record.key, stored.record.headers)
    assert await served.listed() == [other_id]
    shown = await served.operator.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=dead_letter_id))
    assert shown.dead_letter.settlement == pb.SETTLEMENT_REPLAYED

    again_id = await served.rebury(replayed)  # It fails again, as a new dead letter.
    assert sorted(await served.listed()) == sorted([other_id, again_id])


async def test_a_dropped_letter_is_listed_no_more_and_can_no_longer_be_replayed(served: Served) -> None:
    stored, dead_letter_id = await served.bury("one")
    request = pb.DropDeadLetterRequest(dead_letter_id=dead_letter_id)
    for _ in range(2):
        assert (await served.operator.DropDeadLetter(request)).settlement == pb.SETTLEMENT_DROPPED
    assert await served.listed() == []
    other_id = await served.rebury(await served.append(Record("acme/one", ids.record_id("other"), b"\xff")))
    await served.rebury(stored)  # A restarted owner buries it once more.
    assert await served.listed() == await served.listed(page_size=1) == [other_id]
    replay = await served.operator.ReplayDeadLetter(pb.ReplayDeadLetterRequest(dead_letter_id=dead_letter_id))
    assert replay.settlement == pb.SETTLEMENT_DROPPED
    assert [it.record.payload for it in await served.records("acme/one")].count(b"\xffone") == 1


async def test_what_is_replayed_and_dropped_at_the_same_time_is_one_of_both(served: Served) -> None:
    for number in range(20):
        _, dead_letter_id = await served.bury(f"{number}")
        replay = served.operator.ReplayDeadLetter(pb.ReplayDeadLetterRequest(dead_letter_id=dead_letter_id))
        drop = served.operator.DropDeadLetter(pb.DropDeadLetterRequest(dead_letter_id=dead_letter_id))
        settlements = [response.settlement for response in await asyncio.gather(replay, drop)]
        records = await served.records(f"acme/{number}")
        copies = len({stored.record.record_id for stored in records if stored.record.payload == b"\xff%d" % number})
        assert settlements == [pb.SETTLEMENT_REPLAYED if copies == 2 else pb.SETTLEMENT_DROPPED] * 2
    assert await served.listed() == []


async def test_a_replay_that_was_cut_off_is_listed_and_made_by_whoever_settles_it(served: Served) -> None:
    stored, dead_letter_id = await served.bury("one")
    letter_id = stored.record.record_id.hex()
    claim = Record(
        "acme/one", ids.record_id("a claim"), b"\x00", {"dlq-settles": letter_id, "dlq-settlement": "claimed"}
    )
    await served.log.append(_TOPIC + SUFFIX, [claim])
    assert await served.listed() == [dead_letter_id]
    drop = await served.operator.DropDeadLetter(pb.DropDeadLetterRequest(dead_letter_id=dead_letter_id))
    assert drop.settlement == pb.SETTLEMENT_REPLAYED
    assert [it.record.payload for it in await served.records("acme/one")].count(b"\xffone") == 2
    assert await served.listed() == []


async def test_pages_have_every_unsettled_letter_once(served: Served) -> None:
    buried = [(await served.bury(f"{number}"))[1] for number in range(9)]
    for dead_letter_id in buried[::4]:
        await served.operator.DropDeadLetter(pb.DropDeadLetterRequest(dead_letter_id=dead_letter_id))
    unsettled = sorted(set(buried) - set(buried[::4]))
    assert await served.listed() == unsettled
    assert await served.listed(page_size=2) == unsettled
    assert await served.listed(page_size=1) == unsettled


async def test_what_is_no_dead_letter_is_not_found(served: Served) -> None:
    _, dead_letter_id = await served.bury("one")
    await served.operator.DropDeadLetter(pb.DropDeadLetterRequest(dead_letter_id=dead_letter_id))
    place, _, offset = dead_letter_id.rpartition("/")
    for missing in (f"{place}/{int(offset) + 1}", f"{place}/999", f"{place}/0{offset}"):  # The first is the settlement.
        error = await refusal(served.operator.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=missing)))
        assert (error.reason, error.metadata) == (
            error_pb2.ERROR_REASON_DEAD_LETTER_NOT_FOUND,
            {"dead_letter_id": missing},
        )
    elsewhere = served.operator.DropDeadLetter(pb.DropDeadLetterRequest(dead_letter_id="nothing/0/0"))
    assert (await refusal(elsewhere)).reason == error_pb2.ERROR_REASON_TOPIC_NOT_FOUND


@pytest.mark.parametrize("rpc", _REQUESTS)
async def test_nobody_but_an_operator_is_answered(served: Served, rpc: str) -> None:
    keyed = getattr(served.admin, rpc)(_REQUESTS[rpc], metadata=served.key, timeout=_WAIT_SECONDS)
    refused = [await refusal(keyed)]
    with call.scope(Principal("acme", "operator"), _WAIT_SECONDS):  # A service, on behalf of a tenant.
        refused.append(await refusal(getattr(served.operator, rpc)(_REQUESTS[rpc])))
    for error in refused:
        assert (error.reason, error.code) == (
            error_pb2.ERROR_REASON_PERMISSION_DENIED,
            grpc.StatusCode.PERMISSION_DENIED,
        )
        assert "mesh.key" in error.message
