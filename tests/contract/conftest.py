"""What the suites of a port ask for: each of its drivers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.contract.log_stores import PARTITIONS, STORES, Store

from agentshell.log.log import Log, Topic


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> AsyncGenerator[Store]:
    store = STORES[request.param](database_url, tmp_path)
    yield store
    await store.close()


@pytest.fixture
async def log(store: Store) -> Log:
    log = await store.open()
    await log.ensure_topic(Topic("topic", PARTITIONS))
    return log
