"""A group's lag can be seen from outside."""

from __future__ import annotations

from prometheus_client import REGISTRY
from tests.contract.log_stores import PARTITIONS, WAIT, record

from agentshell.log.lag import Lag
from agentshell.log.log import Log, partition_of


async def test_lag_is_measured_for_each_partition_of_a_group(log: Log) -> None:
    partition = partition_of("key", PARTITIONS)
    await log.append("topic", [record(f"{index}") for index in range(5)])
    lag = Lag(log, [("topic", "group")])
    await lag.measure()
    assert lags() == [5 if index == partition else 0 for index in range(PARTITIONS)]

    lease = await log.join("topic", "group", "a")
    records = await log.poll(lease, 3, WAIT)
    await log.commit(lease, {partition: records[-1].offset + 1})
    await lag.measure()
    assert lags()[partition] == 5 - len(records)


def lags() -> list[float | None]:
    labels = [{"topic": "topic", "group": "group", "partition": str(index)} for index in range(PARTITIONS)]
    return [REGISTRY.get_sample_value("agentshell_log_lag_records", of) for of in labels]
