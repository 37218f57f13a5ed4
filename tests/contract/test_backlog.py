"""The limit of open turns, counted in a real database."""

from __future__ import annotations

import pytest

from agentshell.db.database import Database
from agentshell.gateway.backlog import Backlog
from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from agentshell.mesh.config import RuntimeConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.turn.v1 import turn_pb2 as t

OPEN_STATES = (t.TURN_STATE_REQUESTED, t.TURN_STATE_RUNNING, t.TURN_STATE_CANCELLING)
OTHER_STATES = (t.TURN_STATE_WAITING, t.TURN_STATE_COMPLETED, t.TURN_STATE_FAILED, t.TURN_STATE_CANCELLED)


@pytest.fixture
async def index(database: Database) -> TurnIndex:
    return await TurnIndex.open(database)


def row(tenant_id: str, turn_id: str, state: t.TurnState.ValueType, age_seconds: int = 0) -> IndexedTurn:
    turn = t.Turn(turn_id=turn_id, session_id="s", state=state)
    turn.create_time.GetCurrentTime()
    turn.create_time.seconds -= age_seconds
    return IndexedTurn(tenant_id, turn, 0, 0, b"", 0)


async def refused(backlog: Backlog, tenant_id: str, turn_id: str = "unknown", parent_id: str = "") -> AgentShellError:
    with pytest.raises(AgentShellError) as caught:
        await backlog.admit(tenant_id, turn_id, parent_id)
    assert caught.value.reason == error_pb2.ERROR_REASON_OVERLOADED
    assert caught.value.retry_delay is not None
    return caught.value


async def test_a_tenant_with_too_many_open_turns_is_refused_and_the_others_are_not(
    database: Database, index: TurnIndex
) -> None:
    await index.save([row("full", f"T{state}", state) for state in (*OPEN_STATES, *OTHER_STATES)])
    backlog = Backlog(database, RuntimeConfig(max_open_turns_per_tenant=4))
    await backlog.admit("full", "one more", "")
    error = await refused(backlog, "full")
    assert error.metadata == {"open_count": "4", "limit": "4", "key": "runtime.max_open_turns_per_tenant"}
    for number in range(4):
        await backlog.admit("other", f"T{number}", "")
    await refused(backlog, "other")


async def test_too_many_turns_in_all_are_refused(database: Database, index: TurnIndex) -> None:
    await index.save([row(tenant, "T", t.TURN_STATE_RUNNING) for tenant in ("a", "b", "c")])
    error = await refused(Backlog(database, RuntimeConfig(max_open_turns=3)), "d")
    assert error.metadata == {"key": "runtime.max_open_turns"}, "how many others have is not the caller's to know"
    assert "3" not in error.message


async def test_a_turn_that_is_known_or_waited_for_is_not_refused(database: Database, index: TurnIndex) -> None:
    await index.save([row("full", "open", t.TURN_STATE_RUNNING), row("full", "over", t.TURN_STATE_COMPLETED)])
    backlog = Backlog(database, RuntimeConfig(max_open_turns_per_tenant=1))
    await backlog.admit("full", "open", "")
    await backlog.admit("full", "over", "")
    await backlog.admit("full", "child", "open")
    await refused(backlog, "full", "child", "over")
    await refused(backlog, "full", "child", "nothing")


async def test_a_claim_that_nothing_came_of_is_soon_no_open_turn(database: Database, index: TurnIndex) -> None:
    await index.claim(row("acme", "old", t.TURN_STATE_REQUESTED, age_seconds=61))
    await index.claim(row("acme", "new", t.TURN_STATE_REQUESTED))
    backlog = Backlog(database, RuntimeConfig(max_open_turns_per_tenant=2))
    await backlog.admit("acme", "another", "")
    await refused(backlog, "acme")
