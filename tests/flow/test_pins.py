"""A turn that waits while its pack is changed and the mesh is restarted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.conftest import create_database
from tests.flow.conftest import environment_for
from tests.flow.mesh import Mesh
from tests.flow.test_inputs import end_of, waits
from tests.vendors.openai_server import OpenAIChatServer

from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, ApprovalStep, ModelChoice, ModelStep, Plan, Step

_HANDY = Path(__file__).parent / "packs" / "handy"


async def test_a_turn_goes_on_with_the_prompt_that_it_began_with(
    tmp_path: Path, postgres_url: str, vendor: OpenAIChatServer
) -> None:
    shutil.copytree(_HANDY, tmp_path / "packs" / "handy")
    [prompt] = (tmp_path / "packs" / "handy" / "prompts").iterdir()
    environment = environment_for(vendor) | {
        "AGENTSHELL_PERSONALITY__DIRECTORIES": json.dumps([str(tmp_path / "packs")]),
        "AGENTSHELL_PERSONALITY__DEFAULT": "handy",
    }
    mesh = Mesh(tmp_path / "data", await create_database(postgres_url), environment, separate=False)
    (tmp_path / "data").mkdir()
    model = ModelStep(model=ModelChoice(provider="openai"))
    plan = Plan(
        steps=[
            Step(step_id="ask", approval=ApprovalStep(question="Shall I?")),
            Step(step_id="say", depends_on=["ask"], model=model),
        ]
    )
    await mesh.start()
    try:
        async with mesh.client("acme") as client:
            waiting = await waits(client, plan)
        await mesh.stop()
        before = prompt.read_text()
        prompt.write_text("Be another.")
        await mesh.start()
        async with mesh.client("acme") as client:
            await client.provide_input(waiting, f"{waiting}/ask", "yes")
            assert (await end_of(client, waiting)).state == TURN_STATE_COMPLETED
            await client.ask("Hello", provider="openai")
    finally:
        await mesh.stop()
    old, new = (request.body["messages"][0]["content"] for request in vendor.requests)
    assert old.startswith(before.strip())
    assert new.startswith("Be another.")
