"""The expiry of records that do not set their own."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from agentshell.memory.embedders.choice import rule
from agentshell.mesh.config import MemoryConfig
from kfm.memory.v1.memory_service_pb2 import Record


def apply(config: MemoryConfig, namespace: str, records: Iterable[Record]) -> None:
    """Sets the expiry of records about to be written by their namespace's rule; a record that has one keeps it."""
    found = rule(config, namespace)
    if found is None or found.ttl_seconds is None:
        return
    expire_time = datetime.now(UTC) + timedelta(seconds=found.ttl_seconds)
    for record in records:
        if not record.HasField("expire_time"):
            record.expire_time.FromDatetime(expire_time)
