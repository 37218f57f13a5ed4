"""One tenant's long work leaves resources to the others in its process."""

from __future__ import annotations

import asyncio

from tests.contract.memory.caller import Caller, said

from agentshell.db.database import Connection, Database
from kfm.memory.v1 import memory_service_pb2 as pb

_BOUND_SECONDS = 20.0
_MANY = 20  # More than the connections.
_WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


async def test_who_waits_for_a_forget_leaves_connections_to_other_tenants(
    database: Database, acme: Caller, globex: Caller
) -> None:
    async with await database.dedicated() as forgetting:
        await forgetting.execute("SELECT pg_advisory_lock(hashtextextended('acme', 1))")  # As ForgetUser does.
        changes = [asyncio.create_task(acme.write(**{f"r{at}": "tea"})) for at in range(_MANY)]
        changes += [asyncio.create_task(acme(an_append(at))) for at in range(_MANY)]
        await until_waiting(forgetting, 8)
        await asyncio.wait_for(globex.write(r="tea"), _BOUND_SECONDS)
        await asyncio.wait_for(globex(an_append(0)), _BOUND_SECONDS)
        assert not any(change.done() for change in changes)
    await asyncio.gather(*changes)
    assert len(await acme.ids("user/ann")) == _MANY


def an_append(at: int) -> pb.AppendMessagesRequest:
    return pb.AppendMessagesRequest(session_id=f"s{at}", messages=[said("hello")], request_id=f"r{at}")


async def until_waiting(connection: Connection, count: int) -> None:
    """Waits until `count` sessions wait for a lock."""
    async with asyncio.timeout(_BOUND_SECONDS):
        while (await (await connection.execute(_WAITING)).fetchone() or (0,))[0] < count:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)
