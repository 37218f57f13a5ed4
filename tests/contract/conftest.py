"""Fixtures that run a suite over every adapter."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from tests.contract.log_stores import NEEDS_IGGY, PARTITIONS, STORES, Store
from tests.contract.provider import VENDORS, Subject, subject_of

from agentshell.log.log import Log, Topic


@pytest.fixture(params=["postgres", pytest.param("iggy", marks=NEEDS_IGGY)])
async def store(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> AsyncGenerator[Store]:
    store = STORES[request.param](database_url, tmp_path)
    yield store
    await store.close()


@pytest.fixture
async def log(store: Store) -> Log:
    log = await store.open()
    await log.ensure_topic(Topic("topic", PARTITIONS))
    return log


@pytest.fixture(params=["local", *VENDORS])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """Every adapter."""
    async with subject_of(request.param) as found:
        yield found


@pytest.fixture(params=list(VENDORS))
async def vendor(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """Every adapter with a vendor behind it."""
    async with subject_of(request.param) as found:
        yield found
