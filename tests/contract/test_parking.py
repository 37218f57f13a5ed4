"""Parked turns: what is saved is the turn as it was when parking began."""

from __future__ import annotations

import asyncio

from agentshell.db.database import Database
from agentshell.runtime.open_turn import OpenTurn
from agentshell.runtime.parking import Parking
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import TurnRequested
from kfm.turn.v1.turn_pb2 import TURN_STATE_RUNNING, TURN_STATE_WAITING


async def test_a_turn_that_goes_on_while_it_is_parked_is_saved_as_it_was(database_url: str) -> None:
    database = await Database.open(database_url, 1)
    try:
        parking = Parking(database)
        await parking.open()
        waiting = OpenTurn(0, 1, TurnRequested(), EventHeader(), folded_offset=3)
        waiting.turn.turn_id, waiting.turn.state = "T", TURN_STATE_WAITING
        async with database.connection():  # The only one.
            saving = asyncio.create_task(parking.save(waiting))
            await asyncio.sleep(0)
            waiting.turn.state = TURN_STATE_RUNNING
        await saving
        parked = await parking.load("T")
        assert parked is not None
        assert (parked.turn.state, parked.folded_offset) == (TURN_STATE_WAITING, 3)
    finally:
        await database.close()
