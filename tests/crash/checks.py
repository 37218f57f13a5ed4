"""Checks what must hold after the kills, as seen from outside. Each check returns the faults it finds."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.crash.workload import Asked, Run
from tests.flow.ledger import Ledger

from agentshell.turn.state import apply
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message
from kfm.memory.v1.memory_service_pb2 import ListMessagesRequest
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.turn.v1.turn_pb2 import STEP_STATE_SUCCEEDED, Turn, TurnState
from xenocomm import Client, XenocommError

_CALL_SECONDS = 60.0
_SOON_SECONDS = 30.0
_LOOK_SECONDS = 0.01
_SESSIONS = ("s0", "s1", "s2")


async def lost(client: Client, run: Run) -> list[str]:
    """Checks that no acknowledged turn is lost, before any is requested again."""
    return [fault for fault in await asyncio.gather(*(_lost(client, asked) for asked in run.asked)) if fault]


async def _lost(client: Client, asked: Asked) -> str:
    try:
        if asked.turn_id:
            await client.get(asked.turn_id)
    except XenocommError as error:
        return f"{asked.turn_id} ({asked.name}): acknowledged and lost: {error.reason}"
    return ""


async def all_of(client: Client, run: Run, ledger: Ledger) -> list[str]:
    """Waits until the run's turns have ended, then checks the turns, their effects and their history."""
    checked = await asyncio.gather(*(_turn(client, asked, ledger) for asked in run.asked))
    turns = [turn for turn, _ in checked]
    faults = [fault for _, found in checked for fault in found]
    faults += await _listed(client, run)
    for session_id in _SESSIONS:
        answered = [turn for turn in turns if turn.session_id == session_id and turn.output.role == ROLE_ASSISTANT]
        faults += await _history(client, session_id, answered)
    return faults


async def _turn(client: Client, asked: Asked, ledger: Ledger) -> tuple[Turn, list[str]]:
    try:
        turn, faults = await _watched(client, asked.turn_id)
        if await client.get(asked.turn_id) != turn:
            faults.append("GetTurn differs from its events")
    except XenocommError as error:
        turn = await client.get(asked.turn_id)
        return turn, [
            f"{asked.turn_id} ({asked.name}): did not end, is {TurnState.Name(turn.state)}, {turn.plan}: {error}"
        ]
    if turn.state not in asked.ends:
        faults.append(f"ended as {TurnState.Name(turn.state)}: {turn.failure}")
    mine = [effect for effect in ledger.effects if effect[0].startswith(f"{asked.turn_id}/")]
    owed = [(f"{asked.turn_id}/{name}", path) for name, path in (asked.effects or {}).items()]
    if (mine != owed) if asked.effects is not None else (len(mine) != len({path for _, path in mine})):
        faults.append(f"the outside saw {mine} instead of {owed}")
    return turn, [f"{asked.turn_id} ({asked.name}): {fault}" for fault in faults]


async def _watched(client: Client, turn_id: str) -> tuple[Turn, list[str]]:
    """Returns the turn folded from its events, and the faults found in them."""
    turn, succeeded, faults = Turn(), Counter[str](), list[str]()
    async for update in client.watch(turn_id):
        if update.HasField("event"):
            succeeded[update.event.step_succeeded.step_id] += update.event.HasField("step_succeeded")
            succeeded[update.event.input_provided.step_id] += update.event.HasField("input_provided")
            if not apply(turn, update.event):
                faults.append(f"{update.event.WhichOneof('event')} was shown and changes nothing")
    if wrong := [s.step_id for s in turn.plan.steps if succeeded[s.step_id] != (s.state == STEP_STATE_SUCCEEDED)]:
        faults.append(f"did not succeed once each: {wrong}")
    return turn, faults


async def _listed(client: Client, run: Run) -> list[str]:
    """Checks that exactly the requested turns and their sub-turns are listed."""
    there = [turn async for turn in client.list(page_size=500)]
    owed = sum(1 + asked.children for asked in run.asked)
    if len(there) != owed:
        others = [turn for turn in there if turn.turn_id not in {asked.turn_id for asked in run.asked}]
        return [f"tenant {run.tenant_id}: {len(there)} turns are listed, {owed} were asked for; not by us: {others}"]
    return []


async def _history(client: Client, session_id: str, answered: list[Turn]) -> list[str]:
    """Checks that each answered turn is in the history once, its question before its answer."""
    messages = await _messages(client, session_id)
    try:
        async with asyncio.timeout(_SOON_SECONDS):
            while len(messages) < 2 * len(answered):  # The last ones are stored just after they are answered.
                await asyncio.sleep(_LOOK_SECONDS)
                messages = await _messages(client, session_id)
    except TimeoutError:
        pass
    said = [(message.role, message.parts) for message in messages]
    owed = [each for turn in answered for each in ((ROLE_USER, turn.input.parts), (ROLE_ASSISTANT, turn.output.parts))]
    if sorted(map(str, said)) != sorted(map(str, owed)) or [role for role, _ in said] != [role for role, _ in owed]:
        return [f"session {session_id}: {len(answered)} turns were answered, {len(said)} messages are remembered"]
    return []


async def _messages(client: Client, session_id: str) -> list[Message]:
    request = ListMessagesRequest(session_id=session_id, page_size=500)
    page = await MemoryServiceStub(client.channel).ListMessages(request, timeout=_CALL_SECONDS)
    return list(page.messages)
