"""Several managers, workers and gateways, each its own process, share the work, and any of them may be killed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator

import pytest
from tests.conftest import create_database
from tests.contract.log_stores import NEEDS_IGGY
from tests.crash.explorer import LOGS
from tests.flow.ledger import Ledger
from tests.flow.mesh import Mesh
from tests.flow.test_engine import post
from tests.flow.test_turns import spec

from agentshell.turn.state import apply
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, NoopStep, Plan, Step, Turn, TurnLimits
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client, XenocommError

_ONE_EACH = ("memory", "provider", "personality", "tool")
_SERVICES = (*_ONE_EACH, "manager", "manager", "worker", "worker", "worker", "gateway", "gateway")
_TURNS = 12
_STEPS = 6


@pytest.fixture(scope="module")
def ledger() -> Generator[Ledger]:
    """The outside world."""
    with Ledger() as ledger:
        yield ledger


@pytest.fixture(scope="module", params=["postgres", pytest.param("iggy", marks=NEEDS_IGGY)])
async def wide(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_url: str, ledger: Ledger
) -> AsyncGenerator[Mesh]:
    """Two managers, three workers, two gateways."""
    environment = {"AGENTSHELL_RUNTIME__HTTP_HOSTS": f'["{ledger.host}"]', **LOGS[request.param]()}
    database = await create_database(postgres_url)
    mesh = Mesh(tmp_path_factory.mktemp("wide"), database, environment, separate=True, services=_SERVICES)
    try:
        await mesh.start()
        yield mesh
    finally:
        await mesh.stop()


def booking(ledger: Ledger) -> Plan:
    """Returns a plan with effects in sequence, and steps in parallel with them."""
    steps = [post("e0", ledger, "book/0")]
    for at in range(1, _STEPS):
        steps.append(post(f"e{at}", ledger, f"book/{at}", f"e{at - 1}"))
        steps.append(Step(step_id=f"n{at}", depends_on=[f"e{at - 1}"], noop=NoopStep()))
    steps.append(Step(step_id="end", depends_on=[step.step_id for step in steps], noop=NoopStep()))
    return Plan(steps=steps)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["manager", "worker", "gateway"])
async def test_turns_go_on_whichever_process_is_killed(wide: Mesh, ledger: Ledger, victim: str) -> None:
    key = wide.key("acme")
    gateways = [wide.addresses["gateway"], wide.addresses["gateway-1"]]
    limits = TurnLimits(max_steps=25)
    limits.max_duration.FromSeconds(100)
    asked = [
        (uuid.uuid4().hex, spec(plan=booking(ledger), session_id=f"s{at % 7}", limits=limits)) for at in range(_TURNS)
    ]
    watching = [asyncio.create_task(follow(gateways, at, key, *each)) for at, each in enumerate(asked)]
    seen = len(ledger.effects)
    await until(lambda: len(ledger.effects) > seen + _TURNS)
    await wide.kill(victim)
    turns = await asyncio.gather(*watching)
    for turn in turns:
        assert turn.state == TURN_STATE_COMPLETED, turn.failure
        mine = [path for step, path in ledger.effects if step.startswith(turn.turn_id)]
        assert mine == [f"/book/{at}" for at in range(_STEPS)], "each effect once, in order"
    await wide.start()


async def follow(gateways: list[str], at: int, key: str, request_id: str, asked: pb.TurnSpec) -> Turn:
    """Runs a turn at one gateway and moves to the other when that one dies; nothing is shown twice."""
    turn, turn_id, cursor = Turn(), "", ""
    while True:
        address = gateways[at % len(gateways)]
        async with Client.connect(address, key) as client:
            stub = TurnServiceStub(client.channel)
            try:
                if not turn_id:
                    request = pb.CreateTurnRequest(request_id=request_id, turn=asked)
                    turn_id = (await stub.CreateTurn(request, timeout=20)).turn.turn_id
                watch = pb.WatchTurnRequest(turn_id=turn_id, cursor=cursor)
                async for response in stub.WatchTurn(watch, timeout=90):
                    for update in response.updates:
                        assert not update.HasField("event") or apply(turn, update.event)
                    cursor = response.cursor
                return turn
            except (XenocommError, OSError):
                at += 1
            except Exception as error:
                if "UNAVAILABLE" not in str(error):
                    raise
                at += 1


async def until(holds: object) -> None:
    """Waits for something outside this process."""
    assert callable(holds)
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(0.01)
