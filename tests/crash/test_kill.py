"""kill -9 in the middle of a turn: what was acknowledged happens, exactly once."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.conftest import create_database
from tests.flow.conftest import environment_for
from tests.flow.mesh import Mesh
from tests.flow.test_turns import asking_vendor, chain, create, kinds, spec, wait_for_text
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Fault

from kfm.turn.v1.turn_event_pb2 import TurnUpdate
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED
from xenocomm import Transcript


@pytest.fixture
async def vendor() -> AsyncGenerator[OpenAIChatServer]:
    async with OpenAIChatServer() as server:
        yield server


@pytest.fixture
async def alone(vendor: OpenAIChatServer) -> AsyncGenerator[Mesh]:
    """A mesh of one process, with its own Postgres that dies with it."""
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        mesh = Mesh(Path(directory), "", environment_for(vendor), separate=False)
        try:
            await mesh.start()
            yield mesh
        finally:
            await mesh.stop()


@pytest.fixture
async def apart(vendor: OpenAIChatServer, postgres_url: str, tmp_path: Path) -> AsyncGenerator[Mesh]:
    """A mesh with one process for each service."""
    mesh = Mesh(tmp_path, await create_database(postgres_url), environment_for(vendor), separate=True)
    try:
        await mesh.start()
        yield mesh
    finally:
        await mesh.stop()


async def test_a_turn_that_a_kill_interrupts_is_finished_after_a_restart(alone: Mesh, vendor: OpenAIChatServer) -> None:
    vendor.fault = Fault(stall_after=3)
    request_id, session = uuid.uuid4().hex, "s-killed"
    async with alone.client("acme") as client:
        turn_id = await create(client, asking_vendor(session_id=session), request_id)
        await wait_for_text(client, turn_id)
        queued = await create(client, spec("What is a turn?", session_id=session))
    await alone.kill("runtime")
    vendor.fault = Fault()
    await alone.start()
    async with alone.client("acme") as client:
        transcript = Transcript()
        updates: list[TurnUpdate] = []
        async for update in client.watch(turn_id):
            updates.append(update)
            transcript.add(update)
        assert kinds(updates)[-4:] == ["step_scheduled", "text", "step_succeeded", "turn_completed"]
        assert transcript.text == "Ready to serve."
        assert (await client.get(turn_id)).plan.steps[-1].attempt == 2
        assert await create(client, asking_vendor(session_id=session), request_id) == turn_id
        assert kinds([update async for update in client.watch(queued)])[-1] == "turn_completed"
        assert len([turn async for turn in client.list()]) == 2
    said = [request.body["messages"][-1]["content"] for request in vendor.requests]
    assert len(said) == 2, "the interrupted attempt and the one that succeeded"


@pytest.mark.parametrize("service", ["runtime", "gateway", "provider", "memory", "personality"])
async def test_a_turn_survives_the_death_of_any_service(apart: Mesh, vendor: OpenAIChatServer, service: str) -> None:
    vendor.fault = Fault(stall_after=3)
    async with apart.client("acme") as client:
        turn_id = await create(client, asking_vendor())
        await wait_for_text(client, turn_id)
    await apart.kill(service)
    vendor.fault = Fault()
    await apart.start()
    async with apart.client("acme") as client:
        if service in ("gateway", "memory", "personality"):  # They did not make the vendor call: it still stalls.
            await client.cancel(turn_id)
            assert kinds([update async for update in client.watch(turn_id)])[-1] == "turn_cancelled"
        else:
            transcript = Transcript()
            async for update in client.watch(turn_id):
                transcript.add(update)
            assert transcript.text == "Ready to serve."
        answer = await client.ask("And now?", provider="openai")
        assert answer.text == "Ready to serve."


async def test_a_long_chain_of_steps_survives_kills_with_no_step_lost_or_repeated(alone: Mesh) -> None:
    async with alone.client("acme") as client:
        made = [await create(client, spec(plan=chain(24))) for _ in range(10)]
    for _ in range(2):
        await alone.kill("runtime")
        await alone.start()
    async with alone.client("acme") as client:
        for turn_id in made:
            succeeded = [
                update.event.step_succeeded.step_id.rpartition("/")[2]
                async for update in client.watch(turn_id)
                if update.event.HasField("step_succeeded")
            ]
            assert succeeded == [f"s{at:02}" for at in range(24)]
            assert (await client.get(turn_id)).state == TURN_STATE_COMPLETED
