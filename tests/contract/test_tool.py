"""ToolService over a real server, with the real Memory and Personality services and a real database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from prometheus_client import REGISTRY
from tests.contract.serving import Member, member, refusal

from agentshell.db.database import Database
from agentshell.memory.service import MemoryService
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.mesh import channel
from agentshell.mesh.config import MemoryConfig, PersonalityConfig, ToolConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.personality.service import PersonalityService
from agentshell.tool.builtin.table import TOOLS
from agentshell.tool.egress import Egress
from agentshell.tool.mcp.servers import Servers
from agentshell.tool.results import Results
from agentshell.tool.sandbox.sandbox import Sandbox
from agentshell.tool.service import ToolService
from kfm.content.v1.content_pb2 import ToolCall
from kfm.error.v1 import error_pb2
from kfm.memory.v1 import memory_service_pb2, memory_service_pb2_grpc
from kfm.personality.v1 import personality_service_pb2, personality_service_pb2_grpc
from kfm.tool.v1 import tool_service_pb2 as pb
from kfm.tool.v1 import tool_service_pb2_grpc

BOUND_SECONDS = 20
MANIFEST = "id: {id}\nversion: 1.0.0\nname: N\ndescription: D\nsystem_prompt: {{template_file: prompt.md}}\n{more}"
EVERYTHING = "tools: {{enabled: true, exposed_tools: [{}]}}\n".format(", ".join(TOOLS))
KNOWLEDGE = "knowledge: {sources: [{type: directory, path: knowledge}]}\n"


class Memory(MemoryService):
    """A Memory service whose searches a test can count and hold up."""

    def __init__(self, database: Database, store: PgvectorStore) -> None:
        super().__init__(MemoryConfig(), database, store)
        self.open = asyncio.Event()
        self.open.set()
        self.searched = asyncio.Semaphore(0)
        self.abandoned = asyncio.Event()
        self.search_count = 0

    async def Search(  # noqa: N802 - an RPC's name
        self, request: memory_service_pb2.SearchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> memory_service_pb2.SearchResponse:
        self.search_count += 1
        self.searched.release()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.abandoned.set()
            raise
        return await super().Search(request, context)


class Mesh:
    """The services, with helpers to call them."""

    def __init__(self, served: Member, outside: grpc.aio.Channel, memory: Memory, packs: Path) -> None:
        self.outside = outside
        self.memory = memory
        self._packs = packs
        self._keys: dict[str, tuple[tuple[str, str]]] = {}
        self._served = served
        self.operator = served.operator
        self._tools: Any = tool_service_pb2_grpc.ToolServiceStub(outside)

    def key(self, tenant: str) -> tuple[tuple[str, str]]:
        if tenant not in self._keys:
            self._keys[tenant] = self._served.key(tenant)
        return self._keys[tenant]

    def begin(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        request_id: str = "step",
        attempt: int = 1,
        personality_id: str = "all",
        tenant: str = "acme",
    ) -> Any:
        """Begins a call and returns it."""
        given = Struct()
        given.update(arguments or {})
        call = ToolCall(call_id="c1", name=name, arguments=given)
        request = pb.InvokeToolRequest(personality_id=personality_id, call=call, request_id=request_id, attempt=attempt)
        return self._tools.InvokeTool(request, metadata=self.key(tenant), timeout=BOUND_SECONDS)

    async def invoke(self, *call: Any, **named: Any) -> list[pb.InvokeToolResponse]:
        return [response async for response in self.begin(*call, **named)]

    async def result(self, *call: Any, **named: Any) -> dict[str, Any]:
        """Returns the output of a call that must succeed."""
        last = (await self.invoke(*call, **named))[-1]
        assert last.result.call_id == "c1", last
        assert not last.result.is_error
        return MessageToDict(last.result.output)

    async def failure(self, *call: Any, **named: Any) -> tuple[str, str, dict[str, str]]:
        """Returns the reason, message and metadata of the failure with which a call must end."""
        *_, last = await self.invoke(*call, **named)
        return error_pb2.ErrorReason.Name(last.failure.reason), last.failure.message, dict(last.failure.metadata)

    async def refused(self, *call: Any, **named: Any) -> AgentShellError:
        """Returns the error of a call that must be refused."""
        return await refusal(self.invoke(*call, **named))

    async def list(
        self, personality_id: str = "", page_size: int = 0, page_token: str = "", tenant: str = "acme"
    ) -> pb.ListToolsResponse:
        request = pb.ListToolsRequest(personality_id=personality_id, page_size=page_size, page_token=page_token)
        return await self._tools.ListTools(request, metadata=self.key(tenant), timeout=BOUND_SECONDS)

    def write_pack(self, personality_id: str, more: str) -> None:
        folder = self._packs / personality_id
        (folder / "knowledge").mkdir(parents=True, exist_ok=True)
        (folder / "knowledge" / "soup.md").write_text("# Soup\n\nSimmer the onions slowly.")
        (folder / "prompt.md").write_text("Help.")
        (folder / "manifest.yaml").write_text(MANIFEST.format(id=personality_id, more=more))


@asynccontextmanager
async def serve(database: Database, packs: Path, config: ToolConfig = ToolConfig()) -> AsyncGenerator[Mesh]:  # noqa: B008 - frozen
    """Serves the three services in one process."""
    memory = Memory(database, await PgvectorStore.open(database))
    async with member() as served, channel.connect(served.mesh_address, served.keyring) as inside:
        personalities = PersonalityService(PersonalityConfig(directories=(packs,), default="all"), inside)
        egress = Egress(config, os.environ)
        sandbox, servers = Sandbox.of(egress), Servers(egress, os.environ)
        tools = ToolService(Results(database), inside, inside, sandbox, egress, servers)
        await tools.open()
        served.server.add(
            "kfm.memory.v1.MemoryService",
            lambda it: memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(memory, it),
        )
        served.server.add(
            "kfm.personality.v1.PersonalityService",
            lambda it: personality_service_pb2_grpc.add_PersonalityServiceServicer_to_server(personalities, it),
        )
        served.server.add(
            "kfm.tool.v1.ToolService", lambda it: tool_service_pb2_grpc.add_ToolServiceServicer_to_server(tools, it)
        )
        async with await served.start() as outside:
            mesh = Mesh(served, outside, memory, packs)
            mesh.write_pack("all", EVERYTHING + KNOWLEDGE)
            mesh.write_pack("plain", "")
            await personalities.start()
            await personalities.knowledge_ready()
            yield mesh
            await tools.close()
            await personalities.stop()


@pytest.fixture
async def mesh(database: Database, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with serve(database, tmp_path) as made:
        yield made


# --- the list of tools


async def test_a_personality_has_the_tools_that_its_pack_exposes(mesh: Mesh) -> None:
    listed = {personality_id: (await mesh.list(personality_id)).tools for personality_id in ("all", "plain", "")}

    assert listed == {"all": [it.definition for it in TOOLS.values()], "plain": [], "": listed["all"]}


async def test_tools_are_listed_page_by_page(mesh: Mesh) -> None:
    first = await mesh.list("all", page_size=4)
    second = await mesh.list("all", page_size=4, page_token=first.next_page_token)

    assert [tool.name for tool in first.tools] == ["ask_agent", "calculator", "clock", "http_get"]
    assert ([tool.name for tool in second.tools], second.next_page_token) == (["memory_search", "memory_write"], "")
    assert (await refusal(mesh.list("plain", page_token=first.next_page_token))).name == "PAGE_TOKEN_INVALID"


async def test_an_unknown_personality_is_refused(mesh: Mesh) -> None:
    assert (await refusal(mesh.list("nobody"))).name == "PERSONALITY_NOT_FOUND"
    assert (await mesh.refused("clock", personality_id="nobody")).name == "PERSONALITY_NOT_FOUND"


async def test_a_tool_that_the_personality_does_not_expose_is_not_found(mesh: Mesh) -> None:
    assert await mesh.failure("clock", personality_id="plain") == (
        "ERROR_REASON_TOOL_NOT_FOUND",
        "personality 'plain' has no tool 'clock'; it has: none",
        {"personality_id": "plain", "tool": "clock"},
    )
    assert (await mesh.failure("fetch"))[1] == (
        "personality 'all' has no tool 'fetch'; it has: ask_agent, calculator, clock, http_get, memory_search, "
        "memory_write"
    )
    assert (await mesh.failure("fetch", personality_id=""))[1].startswith("the shell has no tool 'fetch'; it has: ask_")


async def test_a_tool_that_a_pack_begins_to_expose_can_be_called_at_once(mesh: Mesh) -> None:
    assert (await mesh.failure("clock", personality_id="plain"))[0] == "ERROR_REASON_TOOL_NOT_FOUND"
    mesh.write_pack("plain", "tools: {enabled: true, exposed_tools: [clock]}\n")
    reload = personality_service_pb2_grpc.PersonalityServiceStub(mesh.outside).Reload
    await reload(personality_service_pb2.ReloadRequest(), metadata=mesh.operator(), timeout=BOUND_SECONDS)

    assert await mesh.result("clock", personality_id="plain")


# --- what they do


async def test_the_calculator_works_out_whole_numbers_exactly(mesh: Mesh) -> None:
    responses = await mesh.invoke("calculator", {"expression": "2 ** 100 + 1"})

    assert [MessageToDict(response) for response in responses] == [
        {"result": {"callId": "c1", "output": {"value": "1267650600228229401496703205377"}}}
    ]


async def test_the_clock_tells_the_time_of_a_zone(mesh: Mesh) -> None:
    began = datetime.now(UTC)
    told = await mesh.result("clock", {"time_zone": "Asia/Kolkata"})

    now = datetime.fromisoformat(told["time"])
    assert began <= now <= datetime.now(UTC)
    assert now.utcoffset() == timedelta(hours=5, minutes=30)
    assert told == {"time": told["time"], "weekday": f"{now:%A}"}


async def test_what_one_conversation_writes_down_another_finds_beside_the_packs_knowledge(mesh: Mesh) -> None:
    written = await mesh.result("memory_write", {"text": "Ann likes onions.", "kind": "preference"}, "w")

    *progress, last = await mesh.invoke("memory_search", {"query": "onions"}, "s")
    (told,) = progress
    found = MessageToDict(last.result.output)["records"]

    assert told.progress == "searching user/ann, knowledge/all"
    own = {"text": "Ann likes onions.", "source": "", "title": "", **written}
    assert [it for it in found if it["namespace"] == "user/ann"] == [own]
    (known,) = [it for it in found if it["namespace"] == "knowledge/all"]
    assert (known["source"], known["title"]) == ("knowledge/soup.md", "Soup")
    assert await mesh.result("memory_search", {"query": "onions", "scope": "user"}, "u") == {"records": [own]}
    assert await mesh.result("memory_search", {"query": "onions", "limit": 1}, "l") == {"records": found[:1]}


async def test_memory_is_searched_for_the_caller_alone(mesh: Mesh) -> None:
    await mesh.result("memory_write", {"text": "Ann likes onions."})

    found = await mesh.result("memory_search", {"query": "onions", "scope": "user"}, tenant="umbrella")

    assert found == {"records": []}


@pytest.mark.parametrize(
    ("name", "arguments", "message", "field"),
    [
        (
            "calculator",
            {"expression": "1 / 0"},
            "arguments of tool 'calculator': expression: division by zero, at character 1. "
            "Correct them and call it again",
            "expression",
        ),
        (
            "memory_search",
            {"query": "onions", "limit": 21},
            "arguments of tool 'memory_search': limit: input should be less than or equal to 20, not 21. "
            "Correct them and call it again",
            "limit",
        ),
        *(
            (
                "clock",
                {"time_zone": zone},
                f"arguments of tool 'clock': time_zone: no time zone {zone!r}; write one such as Europe/Vienna. "
                "Correct them and call it again",
                "time_zone",
            )
            for zone in ("Europe/Atlantis", "Europe", "../etc/passwd")
        ),
    ],
)
async def test_arguments_that_a_model_can_mend_are_answered_with_how(
    mesh: Mesh, name: str, arguments: dict[str, Any], message: str, field: str
) -> None:
    metadata = {"tool": name, "field": field}
    assert await mesh.failure(name, arguments) == ("ERROR_REASON_TOOL_ARGUMENTS_INVALID", message, metadata)


async def test_an_answer_beyond_the_limit_is_a_failure_that_says_so(mesh: Mesh) -> None:
    stub = memory_service_pb2_grpc.MemoryServiceStub(mesh.outside)
    records = [memory_service_pb2.Record(text="onions " * 8000) for _ in range(8)]
    request = memory_service_pb2.BatchWriteRequest(namespace="user/ann", records=records)
    await stub.BatchWrite(request, metadata=mesh.key("acme"), timeout=BOUND_SECONDS)

    *_, last = await mesh.invoke("memory_search", {"query": "onions", "limit": 8})

    assert last.failure.reason == error_pb2.ERROR_REASON_TOO_LARGE
    assert await mesh.result("memory_search", {"query": "onions", "limit": 2}, "less")


# --- once


async def test_a_repeat_after_a_restart_returns_the_first_result(database: Database, tmp_path: Path) -> None:
    async with serve(database, tmp_path) as before:
        first = await before.result("clock")
        written = await before.result("memory_write", {"text": "Ann likes onions."}, "w")
    async with serve(database, tmp_path) as after:
        assert await after.result("clock") == first
        assert await after.result("clock", attempt=2) == first
        assert await after.result("clock", request_id="another") != first
        assert await after.result("memory_write", {"text": "Ann likes onions."}, "w", attempt=2) == written
        found = await after.result("memory_search", {"query": "onions", "scope": "user"}, "s")
    assert len(found["records"]) == 1


async def test_an_attempt_that_crashed_before_its_result_was_kept_runs_again_and_writes_once(
    mesh: Mesh, database: Database
) -> None:
    call = ("memory_write", {"text": "Ann likes onions."})
    written = await mesh.result(*call)
    async with database.connection() as connection:  # As a crash leaves it: claimed and done, but not stored.
        await connection.execute("UPDATE tool.results SET result = NULL")

    assert await mesh.result(*call, attempt=2) == written


async def test_a_request_id_used_for_another_call_is_refused(mesh: Mesh) -> None:
    await mesh.result("clock")

    for other in (("clock", {"time_zone": "Asia/Kolkata"}), ("memory_write", {"text": "x"})):
        error = await mesh.refused(*other)
        assert (error.name, error.metadata) == ("REQUEST_ID_REUSED", {"request_id": "step"})
    assert await mesh.result("memory_search", {"query": "x", "scope": "user"}, "s") == {"records": []}


async def test_an_attempt_lower_than_one_seen_before_is_fenced(mesh: Mesh) -> None:
    await mesh.result("clock", attempt=2)
    await mesh.result("memory_write", {"text": "x"}, "w", attempt=2)

    for error in (await mesh.refused("clock"), await mesh.refused("memory_write", {"text": "x"}, "w")):
        assert (error.name, error.metadata["attempt"]) == ("FENCED", "1")


async def test_a_request_id_is_its_tenants_own(mesh: Mesh) -> None:
    first = await mesh.result("clock", attempt=2)

    assert await mesh.result("clock", attempt=1, tenant="umbrella") != first
    assert await mesh.result("clock", {"time_zone": "Asia/Kolkata"}, tenant="wayne") != first


async def test_a_result_is_kept_for_a_day(mesh: Mesh, database: Database) -> None:
    first = await mesh.result("clock", attempt=2)
    await mesh.result("clock", request_id="other")
    async with database.connection() as connection:
        await connection.execute("UPDATE tool.results SET use_time = now() - interval '25 hours'")

    assert await mesh.result("clock", {"time_zone": "UTC"}, attempt=1) != first
    async with database.connection() as connection:
        rows = await (await connection.execute("SELECT request_id FROM tool.results")).fetchall()
    assert rows == [("step",)]


# --- while a tool runs


async def held_search(mesh: Mesh, **named: Any) -> asyncio.Task[list[pb.InvokeToolResponse]]:
    """Begins a search that is held up, and returns once it has reached Memory."""
    mesh.memory.open.clear()
    search = asyncio.create_task(mesh.invoke("memory_search", {"query": "onions"}, **named))
    await asyncio.wait_for(mesh.memory.searched.acquire(), BOUND_SECONDS)
    return search


async def test_a_call_that_is_cancelled_cancels_its_tool(mesh: Mesh) -> None:
    labels = {"tool": "memory_search", "outcome": "CANCELLED"}
    before = REGISTRY.get_sample_value("agentshell_tool_seconds_count", labels) or 0
    mesh.memory.open.clear()
    search = mesh.begin("memory_search", {"query": "onions"})
    assert (await search.read()).progress == "searching user/ann, knowledge/all"
    await asyncio.wait_for(mesh.memory.searched.acquire(), BOUND_SECONDS)

    search.cancel()

    await asyncio.wait_for(mesh.memory.abandoned.wait(), BOUND_SECONDS)
    mesh.memory.open.set()
    assert (await mesh.invoke("memory_search", {"query": "onions"}, attempt=2))[-1].HasField("result")
    assert REGISTRY.get_sample_value("agentshell_tool_seconds_count", labels) == before + 1


async def test_a_later_attempt_takes_a_run_over(mesh: Mesh) -> None:
    first = await held_search(mesh)
    second = await held_search(mesh, attempt=2)

    assert (await refusal(first)).name == "FENCED"
    assert (await mesh.refused("memory_search", {"query": "onions"}, attempt=1)).name == "FENCED"
    assert (await mesh.refused("memory_search", {"query": "leeks"}, attempt=3)).name == "REQUEST_ID_REUSED"
    await asyncio.wait_for(mesh.memory.abandoned.wait(), BOUND_SECONDS)
    mesh.memory.open.set()
    assert (await second)[-1].HasField("result")


async def test_calls_are_measured_by_tool_and_outcome_and_invented_names_in_one(mesh: Mesh) -> None:
    def counted(tool: str, outcome: str) -> float:
        labels = {"tool": tool, "outcome": outcome}
        return REGISTRY.get_sample_value("agentshell_tool_seconds_count", labels) or 0

    kinds = [("calculator", "OK"), ("calculator", "TOOL_ARGUMENTS_INVALID"), ("other", "TOOL_NOT_FOUND")]
    before = [counted(*kind) for kind in kinds]

    await mesh.result("calculator", {"expression": "1"})
    await mesh.failure("calculator", {})
    await mesh.failure("invented")

    assert [counted(*kind) for kind in kinds] == [count + 1 for count in before]
