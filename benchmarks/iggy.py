"""The log's Iggy driver beside the SDK that it uses, over the server that AGENTSHELL_TEST_IGGY names."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agentshell.log.log import Record, Topic, partition_of
from benchmarks.bench import Bench
from benchmarks.figure import Figure, median, percentile

if TYPE_CHECKING:
    from apache_iggy import IggyClient  # An optional extra: used only if a server is given.

    from agentshell.log.iggy import IggyLog

_SERVER = "AGENTSHELL_TEST_IGGY"
_TOPIC = "records"
_PARTITIONS = 8
_PAYLOAD = bytes(512)
_HEADERS = {"type": "kfm.turn.v1.TurnEvent", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
_ROUNDS = 5
_ALONE = 200
_PRODUCERS = 50
_EACH = 20
_BATCH = 1000


class _Side(Protocol):
    """What both sides can do."""

    async def append(self, number: int, count: int) -> None:
        """Durably appends `count` records to the partition that `number` selects."""
        ...

    async def read(self, partition: int) -> int:
        """Reads a partition to its end and returns how many records it has."""
        ...


class _Taken(NamedTuple):
    """What a side took: seconds for single appends, and otherwise records per second."""

    alone: list[float]
    together: list[float]
    batched: list[float]
    read: list[float]


async def measure(bench: Bench) -> list[Figure]:
    """Appends and reads with our driver and with the bare SDK in turn, over the same number of connections."""
    if not (url := os.environ.get(_SERVER)):
        bench.skip("the driver of Iggy", f"{_SERVER} names no server, such as iggy://iggy:iggy@127.0.0.1:8090")
        return []
    try:
        import apache_iggy as _
    except ImportError:
        bench.skip("the driver of Iggy", "its SDK is not installed; pip install 'agentshell[iggy]'")
        return []
    taken = {"ours": _Taken([], [], [], []), "raw": _Taken([], [], [], [])}
    async with _sides(url) as (version, sides):
        for side in sides.values():  # Both warm up.
            await _round(side, _Taken([], [], [], []))
        for _ in range(bench.rounds(_ROUNDS)):
            for name, side in sides.items():
                await _round(side, taken[name])
    return _figures(
        taken["ours"], taken["raw"], f"server {version}, durability persisted, 512 B and 2 headers a record"
    )


def _figures(ours: _Taken, raw: _Taken, settings: str) -> list[Figure]:
    peer = "apache-iggy"
    alone, peer_alone = ([seconds * 1e3 for seconds in side.alone] for side in (ours, raw))
    name = "Iggy, one append"
    figures = [
        Figure(f"{name}, p50", "ms", median(alone), peer, median(peer_alone), settings=settings),
        Figure(f"{name}, p99", "ms", percentile(alone, 99), peer, percentile(peer_alone, 99), settings=settings),
    ]
    for name, rates, peer_rates in (
        (f"Iggy, appends, {_PRODUCERS} producers", ours.together, raw.together),
        (f"Iggy, records in batches of {_BATCH}", ours.batched, raw.batched),
        ("Iggy, records read", ours.read, raw.read),
    ):
        figures.append(Figure(name, "1/s", median(rates), peer, median(peer_rates), settings=settings))
    return figures


async def _round(side: _Side, taken: _Taken) -> None:
    for number in range(_ALONE):
        taken.alone.append(await _seconds(lambda number=number: side.append(number, 1)))

    async def produce(producer: int) -> None:
        for _ in range(_EACH):
            await side.append(producer, 1)

    together = await _seconds(lambda: asyncio.gather(*(produce(producer) for producer in range(_PRODUCERS))))
    taken.together.append(_PRODUCERS * _EACH / together)

    async def load() -> None:
        for number in range(_PARTITIONS):
            await side.append(number, _BATCH)

    taken.batched.append(_PARTITIONS * _BATCH / await _seconds(load))
    began = time.perf_counter()
    count = sum([await side.read(partition) for partition in range(_PARTITIONS)])
    taken.read.append(count / (time.perf_counter() - began))


async def _seconds(do: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await do()
    return time.perf_counter() - began


class _Ours:
    def __init__(self, log: IggyLog) -> None:
        self._log = log

    async def append(self, number: int, count: int) -> None:
        # One key per partition, in turn.
        records = [Record(_KEYS[number % _PARTITIONS], uuid.uuid4().bytes, _PAYLOAD, _HEADERS) for _ in range(count)]
        await self._log.append(_TOPIC, records)

    async def read(self, partition: int) -> int:
        offset = 0
        while records := await self._log.read(_TOPIC, partition, offset, _BATCH, 0):
            offset = records[-1].offset + 1
        return offset


class _Raw:
    """The SDK, with only as much around it as it needs."""

    def __init__(self, clients: Sequence[IggyClient], stream: str) -> None:
        from apache_iggy import Consumer, PollingStrategy, SendMessage

        self._clients = clients
        self._stream = stream
        self._message = SendMessage
        self._consumer = Consumer.Single("benchmark")
        self._from = PollingStrategy.Offset

    async def append(self, number: int, count: int) -> None:
        partition = number % _PARTITIONS
        messages = [self._message(_PAYLOAD, dict(_HEADERS), uuid.uuid4().int) for _ in range(count)]
        await self._clients[partition % len(self._clients)].send_messages(self._stream, _TOPIC, partition, messages)

    async def read(self, partition: int) -> int:
        offset = 0
        while messages := await self._clients[0].poll_messages(
            self._stream,
            _TOPIC,
            consumer=self._consumer,
            polling_strategy=self._from(offset),
            count=_BATCH,
            auto_commit=False,
            partition_id=partition,
        ):
            payloads = [(message.offset(), message.payload(), message.user_headers()) for message in messages]
            offset = payloads[-1][0] + 1
        return offset


def _key(partition: int) -> str:
    return next(key for number in range(1_000_000) if partition_of(key := f"key{number}", _PARTITIONS) == partition)


_KEYS = [_key(partition) for partition in range(_PARTITIONS)]


@asynccontextmanager
async def _sides(url: str) -> AsyncGenerator[tuple[str, dict[str, _Side]]]:
    """Yields the server's version and both sides, each with a stream of its own that is deleted at the end."""
    from apache_iggy import Durability, IggyClient

    from agentshell.log.iggy import APPEND_CONNECTIONS, IggyLog
    from agentshell.log.iggy_wire import tcp_config

    name = f"bench-{uuid.uuid4().hex[:8]}"
    log = await IggyLog.open(url, stream=name)
    clients = [IggyClient(tcp_config(url)) for _ in range(APPEND_CONNECTIONS)]
    for client in clients:
        await client.connect()
    raw = f"{name}.raw"
    try:
        await log.ensure_topic(Topic(_TOPIC, _PARTITIONS))
        await clients[0].create_stream(raw)
        await clients[0].create_topic(raw, _TOPIC, _PARTITIONS, durability=Durability.PERSISTED)
        version = (await clients[0].get_stats()).iggy_server_version
        yield version, {"ours": _Ours(log), "raw": _Raw(clients, raw)}
    finally:
        await log.close()
        for stream in (name, f"{name}.groups", raw):
            if await clients[0].get_stream(stream) is not None:
                await clients[0].delete_stream(stream)
