"""Claims of turns: concurrent ones are written together, and each turn is claimed once."""

from __future__ import annotations

import asyncio

from agentshell.gateway.turn_index import IndexedTurn, TurnIndex
from kfm.turn.v1.turn_pb2 import Turn


def claim(turn_id: str, digest: bytes, tenant_id: str = "acme") -> IndexedTurn:
    return IndexedTurn(tenant_id, Turn(turn_id=turn_id, session_id="s"), 1, 2, digest)


async def test_of_those_who_claim_a_turn_at_once_the_first_has_it(index: TurnIndex) -> None:
    rows = [claim("U", b"1"), claim("T", b"2"), claim("T", b"3"), claim("T", b"4", "other"), claim("T", b"5")]
    claimed = await asyncio.gather(*map(index.claim, rows))
    assert [made is asked for made, asked in zip(claimed, rows, strict=True)] == [True, True, False, True, False]
    assert claimed[2] == claimed[4] == rows[1]
    assert await index.claim(claim("U", b"6")) == rows[0]


async def test_more_claims_than_go_together_are_all_made(index: TurnIndex) -> None:
    rows = [claim(f"T{number}", b"") for number in range(120)]
    assert all(made is asked for made, asked in zip(await asyncio.gather(*map(index.claim, rows)), rows, strict=True))
    assert len(await index.find_all([row.key for row in rows])) == len(rows)


async def test_one_who_gives_up_leaves_the_others_their_claims(index: TurnIndex) -> None:
    rows = [claim("T", b"1"), claim("U", b"2"), claim("V", b"3")]
    first, *others = [asyncio.create_task(index.claim(row)) for row in rows]
    await asyncio.sleep(0)  # The first queries Postgres; the others wait for it.
    first.cancel()
    given_up, *made = await asyncio.gather(first, *others, return_exceptions=True)
    assert isinstance(given_up, asyncio.CancelledError)
    assert made == rows[1:]
