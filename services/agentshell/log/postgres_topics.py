"""The topics of a log in Postgres, each looked up once, and the tails of their partitions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from agentshell.db.database import Database
from agentshell.log.log import Topic
from agentshell.log.reach import reach
from agentshell.log.tail import Tail
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2


@dataclass(frozen=True, slots=True, eq=False)
class OpenTopic:
    """A topic in use: its partitions, and whether appends to it skip waiting for the disk."""

    topic_id: int
    name: str
    relaxed: bool
    tails: Sequence[Tail]

    def tail(self, partition: int) -> Tail:
        """Returns the tail of a partition. Raises INVALID_REQUEST if the topic has no such partition."""
        if not 0 <= partition < len(self.tails):
            raise invalid("partition", f"topic {self.name!r} has no partition {partition}, only {len(self.tails)}")
        return self.tails[partition]


class PostgresTopics:
    """Finds and creates topics. They are permanent, and only their retention changes, so look-ups are cached."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._by_name: dict[str, OpenTopic] = {}
        self._tails: dict[int, Tail] = {}
        self._looking_up = asyncio.Lock()

    @property
    def tails(self) -> Sequence[Tail]:
        """The tails of all topics in use."""
        return list(self._tails.values())

    def tail(self, partition_id: int) -> Tail | None:
        """Returns the tail of a partition of a topic in use."""
        return self._tails.get(partition_id)

    async def ensure(self, topic: Topic) -> None:
        """Creates the topic, or sets its retention. Raises TOPIC_MISMATCH if partitions or durability differ."""
        if not topic.name or topic.partitions < 1:
            raise invalid("topic", f"{topic.name!r} with {topic.partitions} partitions; give a name and at least one")
        async with reach("make a topic"), self._database.transaction() as connection:
            await connection.execute(
                "INSERT INTO log.topics (name, partitions, durability, retention) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (name) DO NOTHING",
                (topic.name, topic.partitions, topic.durability, topic.retention),
            )
            cursor = await connection.execute(
                "SELECT topic_id, partitions, durability FROM log.topics WHERE name = %s FOR UPDATE", (topic.name,)
            )
            topic_id, partitions, durability = await cursor.fetchone() or (0, 0, "")
            if (partitions, durability) != (topic.partitions, topic.durability):
                raise _mismatch(topic, partitions, durability)
            await connection.execute(
                "UPDATE log.topics SET retention = %s WHERE topic_id = %s", (topic.retention, topic_id)
            )
            await connection.execute(
                "INSERT INTO log.partitions (topic_id, partition) SELECT %s, generate_series(0, %s - 1)"
                " ON CONFLICT (topic_id, partition) DO NOTHING",
                (topic_id, partitions),
            )

    async def find(self, name: str) -> OpenTopic:
        """Returns the topic. Raises TOPIC_NOT_FOUND."""
        return self._by_name.get(name) or await self._look_up(name)

    async def _look_up(self, name: str) -> OpenTopic:
        async with self._looking_up:  # Only once, because there is one tail per partition.
            if found := self._by_name.get(name):
                return found
            async with reach("find a topic"), self._database.connection() as connection:
                cursor = await connection.execute(
                    "SELECT topic_id, durability = 'relaxed', partition_id"
                    " FROM log.topics JOIN log.partitions USING (topic_id) WHERE name = %s ORDER BY partition",
                    (name,),
                )
                rows = await cursor.fetchall()
            if not rows:
                raise AgentShellError(
                    error_pb2.ERROR_REASON_TOPIC_NOT_FOUND,
                    f"the log has no topic {name!r}: make it with ensure_topic, or correct the name",
                    metadata={"topic": name},
                )
            topic_id, relaxed, _ = rows[0]
            tails = [Tail(name, partition, partition_id) for partition, (_, _, partition_id) in enumerate(rows)]
            self._tails.update((tail.partition_id, tail) for tail in tails)
            self._by_name[name] = OpenTopic(topic_id, name, relaxed, tails)
            return self._by_name[name]


def _mismatch(topic: Topic, partitions: int, durability: str) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_TOPIC_MISMATCH,
        f"topic {topic.name!r} has {partitions} partitions and is {durability}, not {topic.partitions} and "
        f"{topic.durability}: both are fixed when a topic is made; ask for the values it has, or use another topic",
        metadata={"topic": topic.name},
    )
