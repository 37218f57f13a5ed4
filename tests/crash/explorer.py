"""Kills a mesh at random instants while turns run, and then checks all that was acknowledged.

`python -m tests.crash.explorer --seed 1 --kills 100` (or `make crash`) is the long form of `test_explorer.py`. The seed
decides what is asked and when the kills come; the machine decides what they hit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from tests.flow.mesh import Mesh
from tests.flow.test_turns import chain, spec

from agentshell.turn.state import apply
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT
from kfm.memory.v1.memory_service_pb2 import ListMessagesRequest
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, Turn
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client, XenocommError

_CALLERS = 4
_SESSIONS = 12
_CALL_SECONDS = 5.0
_WAIT_SECONDS = 120.0
_LIFE_SECONDS = 1.2  # Between two kills, at the most.


@dataclass
class Explorer:
    """Callers that start turns, and what was acknowledged to them."""

    mesh: Mesh
    seed: int
    acknowledged: dict[str, tuple[str, pb.TurnSpec]] = field(default_factory=dict[str, tuple[str, pb.TurnSpec]])
    faults: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - to be repeatable
        self._key = ""

    async def run(self, kills: int) -> None:
        """Starts the mesh and kills it `kills` times; it runs at the end."""
        await self.mesh.start()
        self._key = self.mesh.key("explorer")
        for _ in range(kills):
            callers = [asyncio.create_task(self._call()) for _ in range(_CALLERS)]
            await asyncio.sleep(self._random.uniform(0.05, _LIFE_SECONDS))
            await self.mesh.kill("runtime")
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            await self.mesh.start()

    async def check(self) -> None:
        """Fills `faults` with what was acknowledged and did not happen, or happened twice."""
        answered = Counter[str]()
        async with Client.connect(self.mesh.endpoints.address, self._key, timeout_seconds=_WAIT_SECONDS) as client:
            there = {turn.turn_id async for turn in client.list(page_size=500)}
            self.faults += [f"{turn_id}: acknowledged and lost" for turn_id in self.acknowledged.keys() - there]
            for turn_id in there:  # Those too whose caller was killed before it heard of them.
                turn = await self._check_turn(client, turn_id)
                answered[turn.session_id] += turn.output.role == ROLE_ASSISTANT
            for turn_id, (request_id, asked) in self.acknowledged.items():
                request = pb.CreateTurnRequest(request_id=request_id, turn=asked)
                again = await TurnServiceStub(client.channel).CreateTurn(request, timeout=_CALL_SECONDS)
                if again.turn.turn_id != turn_id:
                    self.faults.append(f"{turn_id}: its request made another turn")
            for session_id, turns in answered.items():
                await self._check_history(client, session_id, turns)

    async def _call(self) -> None:
        try:
            async with Client.connect(self.mesh.endpoints.address, self._key) as client:
                stub = TurnServiceStub(client.channel)
                while True:
                    request_id, asked = uuid.uuid4().hex, self._ask()
                    request = pb.CreateTurnRequest(request_id=request_id, turn=asked)
                    created = await stub.CreateTurn(request, timeout=_CALL_SECONDS)
                    self.acknowledged[created.turn.turn_id] = (request_id, asked)
                    await asyncio.sleep(self._random.uniform(0, 0.03))
        except (grpc.aio.AioRpcError, XenocommError):
            return  # Killed: what was not acknowledged is owed to nobody.

    def _ask(self) -> pb.TurnSpec:
        session_id = f"s{self._random.randrange(_SESSIONS)}"
        if self._random.random() < 0.6:
            return spec(plan=chain(self._random.randint(1, 12)), session_id=session_id)
        return spec("What is a turn?", session_id=session_id)

    async def _check_turn(self, client: Client, turn_id: str) -> Turn:
        turn, succeeded = Turn(), Counter[str]()
        async for update in client.watch(turn_id):
            if update.HasField("event"):
                succeeded[update.event.step_succeeded.step_id] += update.event.HasField("step_succeeded")
                if not apply(turn, update.event):
                    self.faults.append(f"{turn_id}: {update.event.WhichOneof('event')} was shown and changes nothing")
        if turn.state != TURN_STATE_COMPLETED:
            self.faults.append(f"{turn_id}: ended as {turn.state}: {turn.failure.message}")
        if any(succeeded[step.step_id] != 1 for step in turn.plan.steps):
            self.faults.append(f"{turn_id}: not every step succeeded once: {dict(succeeded)}")
        if await client.get(turn_id) != turn:
            self.faults.append(f"{turn_id}: GetTurn differs from its events")
        return turn

    async def _check_history(self, client: Client, session_id: str, turns: int) -> None:
        """Checks the effect that each answered turn has in memory: its question and its answer, once."""
        count = await _count_messages(client, session_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CALL_SECONDS):
                while count < 2 * turns:  # The last ones are remembered just after they are answered.
                    count = await _count_messages(client, session_id)
        if count != 2 * turns:
            self.faults.append(f"session {session_id}: {turns} turns were answered, {count} messages are remembered")


async def _count_messages(client: Client, session_id: str) -> int:
    stub = MemoryServiceStub(client.channel)
    count, request = 0, ListMessagesRequest(session_id=session_id, page_size=500)
    while True:
        page = await stub.ListMessages(request, timeout=_CALL_SECONDS)
        count += len(page.messages)
        if not page.next_page_token:
            return count
        request.page_token = page.next_page_token


async def explore(directory: Path, seed: int, kills: int) -> Explorer:
    """Explores over a mesh in `directory`, with a Postgres that dies with it."""
    longest = {"AGENTSHELL_RUNTIME__MAX_TURN_SECONDS": "3600"}
    explorer = Explorer(Mesh(directory, "", longest, separate=False), seed)
    try:
        await explorer.run(kills)
        await explorer.check()
    finally:
        await explorer.mesh.stop()
    return explorer


def main() -> None:
    """Runs from the command line; exits with 1 where there are faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        explorer = asyncio.run(explore(Path(directory), arguments.seed, arguments.kills))
    print(*explorer.faults, sep="\n")
    told = f"{arguments.kills} kills, {len(explorer.acknowledged)} turns acknowledged, {len(explorer.faults)} faults"
    print(f"seed {arguments.seed}: {told}")
    raise SystemExit(bool(explorer.faults))


if __name__ == "__main__":
    main()
