from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from tests.unit.gateway.turn_log import make_topics

from agentshell.db.database import Database
from agentshell.gateway.turn_index import TurnIndex
from agentshell.log.postgres import PostgresLog


@pytest.fixture
async def log(database: Database) -> AsyncGenerator[PostgresLog]:
    """A log with the topics of turns, with one partition each."""
    log = await PostgresLog.open(database)
    await make_topics(log)
    yield log
    await log.close()


@pytest.fixture
async def index(database: Database) -> TurnIndex:
    return await TurnIndex.open(database)
