"""Wraps a log with network faults and with boundaries at which the process can be killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

from tests.crash.page import BETWEEN, Page

from agentshell.log.log import Ack, Lease, Log, Record, StoredRecord, Topic
from agentshell.log.reach import unavailable
from agentshell.turn import envelope

_LONGEST_DELAY_SECONDS = 0.05
_APPEND_FAULTS = ("request dropped", "reply dropped", "delayed", "doubled", "overtaken")

Batches = Sequence[tuple[str, Sequence[Record]]]


class FaultyLog:
    """A `Log` over another one: `page` sets how often calls go wrong, `seed` decides which."""

    def __init__(self, log: Log, page: Page, seed: int) -> None:
        self._log = log
        self._page = page
        self._random = random.Random(seed)  # noqa: S311 - repeatable
        self._passed = asyncio.Event()  # Another append has gone ahead.

    async def append(self, topic: str, records: Sequence[Record], lease: Lease | None = None) -> list[Ack]:
        return (await self.append_all([(topic, records)], lease))[0]

    async def append_all(self, batches: Batches, lease: Lease | None = None) -> list[list[Ack]]:
        names = [topic for topic, records in batches if records]
        send = self._append_apart if self._page.is_split and len(names) > 1 else self._log.append_all
        if names[:1] in ([envelope.TURNS], [envelope.OUTPUTS]):  # Not appends to a dead-letter topic.
            send = self._page.around(f"append to {' and '.join(names)}", send)
        if not self._strikes():
            acks = await send(batches, lease)
            self._passed.set()
            return acks
        fault = self._random.choice(_APPEND_FAULTS)
        self._page.met(fault)
        match fault:
            case "request dropped":
                raise unavailable("confirm an append: a test dropped the request")
            case "reply dropped":
                await send(batches, lease)
                raise unavailable("confirm an append: a test dropped the reply")
            case "doubled":
                return self._random.choice([await send(batches, lease), await send(batches, lease)])
            case "overtaken":
                await self._be_overtaken()
            case _:
                await self._delay()
        return await send(batches, lease)

    async def read(self, topic: str, partition: int, offset: int, limit: int, wait: float) -> list[StoredRecord]:
        return await self._late(await self._log.read(topic, partition, offset, limit, wait))

    async def poll(self, lease: Lease, limit: int, wait: float) -> list[StoredRecord]:
        self._reach("poll")
        return await self._late(await self._page.around("poll", self._log.poll)(lease, limit, wait))

    async def join(self, topic: str, group: str, member: str) -> Lease:
        self._reach("join a group")
        return await self._page.around("join", self._log.join)(topic, group, member)

    async def commit(self, lease: Lease, offsets: Mapping[int, int]) -> None:
        self._reach("commit offsets")
        await self._page.around("commit", self._log.commit)(lease, offsets)

    async def ensure_topic(self, topic: Topic) -> None:
        await self._log.ensure_topic(topic)

    async def leave(self, lease: Lease) -> None:
        await self._log.leave(lease)

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        return await self._log.committed(topic, group)

    async def end_offsets(self, topic: str) -> list[int]:
        return await self._log.end_offsets(topic)

    async def health(self) -> None:
        await self._log.health()

    async def close(self) -> None:
        await self._log.close()

    async def _append_apart(self, batches: Batches, lease: Lease | None = None) -> list[list[Ack]]:
        """Appends as a log without transactions does: topic by topic, in the given order."""
        acks: list[list[Ack]] = []
        for index, (topic, records) in enumerate(batches):
            if index:
                self._page.met(BETWEEN)
            acks.append(await self._log.append(topic, records, lease))
        return acks

    def _reach(self, what: str) -> None:
        if self._strikes():
            self._page.met("unreachable")
            raise unavailable(f"{what}: a test dropped the request")

    def _strikes(self) -> bool:
        return self._random.randrange(1000) < self._page.faults_per_mille

    async def _late(self, records: list[StoredRecord]) -> list[StoredRecord]:
        if self._strikes():
            self._page.met("read delayed")
            await self._delay()
        return records

    async def _delay(self) -> None:
        await asyncio.sleep(self._random.uniform(0, _LONGEST_DELAY_SECONDS))

    async def _be_overtaken(self) -> None:
        """Waits for a later append to go first, if one comes."""
        self._passed.clear()
        try:
            await asyncio.wait_for(self._passed.wait(), _LONGEST_DELAY_SECONDS)
        except TimeoutError:
            return
