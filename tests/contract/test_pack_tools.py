"""ToolService with tools from packs: listed, checked, run once, and in a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from tests.contract.serving import refusal
from tests.contract.test_tool import BOUND_SECONDS, Mesh, serve

from agentshell.db.database import Database
from kfm.personality.v1.personality_service_pb2 import ReloadRequest
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub

GAMES: dict[str, Any] = {"personality_id": "games"}
MORE = "tools: {enabled: true, exposed_tools: [clock, dice, liar, wait]}\n"
TOOLS = '''
import asyncio, random
import host

async def dice(sides: int = 6) -> dict[str, float]:
    """Rolls dice."""
    host.progress(f"rolling one of {sides}")
    return {"rolled": random.random() * sides}

def liar() -> int:
    """Says what it does not say."""
    return "seven"

async def wait() -> None:
    """Waits."""
    host.progress("waiting")
    await asyncio.sleep(3600)
'''


@pytest.fixture
async def mesh(database: Database, tmp_path: Path) -> AsyncGenerator[Mesh]:
    """The services with one pack."""
    tools = tmp_path / "games" / "tools"
    tools.mkdir(parents=True)
    (tools / "games.py").write_text(TOOLS)
    async with serve(database, tmp_path) as mesh:
        mesh.write_pack("games", MORE)
        reload = PersonalityServiceStub(mesh.outside).Reload
        await reload(ReloadRequest(), metadata=mesh.operator(), timeout=BOUND_SECONDS)
        yield mesh


async def test_a_packs_tools_are_listed_beside_the_built_in_ones(mesh: Mesh) -> None:
    tools = (await mesh.list("games")).tools

    assert [tool.name for tool in tools] == ["clock", "dice", "liar", "wait"]
    assert MessageToDict(tools[1]) == {
        "name": "dice",
        "description": "Rolls dice.",
        "inputSchema": {
            "type": "object",
            "properties": {"sides": {"type": "integer", "default": 6.0}},
            "required": [],
            "additionalProperties": False,
        },
        "outputSchema": {"type": "object", "additionalProperties": {"type": "number"}},
    }


async def test_a_packs_tool_runs_once_for_a_request(mesh: Mesh) -> None:
    progress, last = await mesh.invoke("dice", {"sides": 20}, **GAMES)
    first = MessageToDict(last.result.output)

    assert progress.progress == "rolling one of 20"
    assert await mesh.result("dice", {"sides": 20}, **GAMES) == first
    assert await mesh.result("dice", {"sides": 20}, attempt=3, **GAMES) == first
    assert (await mesh.refused("dice", {"sides": 20}, attempt=2, **GAMES)).name == "FENCED"
    assert (await mesh.refused("dice", {"sides": 6}, attempt=4, **GAMES)).name == "REQUEST_ID_REUSED"
    assert await mesh.result("dice", {"sides": 20}, "another", **GAMES) != first


async def test_what_breaks_a_packs_schema_is_said_to_the_model(mesh: Mesh) -> None:
    for given in ({"sides": "six"}, {"faces": 6}):
        reason, message, _ = await mesh.failure("dice", given, **GAMES)
        assert (reason, "dice" in message) == ("ERROR_REASON_TOOL_ARGUMENTS_INVALID", True)
    reason, message, _ = await mesh.failure("liar", **GAMES)
    assert reason == "ERROR_REASON_TOOL_OUTPUT_INVALID"
    assert '"seven" is not of type "integer"' in message


async def test_a_later_attempt_takes_a_packs_tool_over(mesh: Mesh) -> None:
    first = mesh.begin("wait", **GAMES)
    assert (await first.read()).progress == "waiting"

    second = mesh.begin("wait", attempt=2, **GAMES)
    assert (await second.read()).progress == "waiting"

    assert (await refusal(first.read())).name == "FENCED"
    second.cancel()
    async with asyncio.timeout(BOUND_SECONDS):
        assert "rolled" in await mesh.result("dice", {}, "next", **GAMES)
