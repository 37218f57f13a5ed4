"""PersonalityService over a real server, with real files; its Memory service records what it gets."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import REGISTRY
from tests.contract.serving import Member, member, refusal

from agentshell.mesh import call, channel
from agentshell.mesh.config import PersonalityConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.personality import knowledge
from agentshell.personality.registry import VERSIONS_KEPT
from agentshell.personality.service import PENDING_CHANGES, PersonalityService
from kfm.content.v1.content_pb2 import Money
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import Failure
from kfm.memory.v1 import memory_service_pb2
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.personality.v1 import personality_service_pb2_grpc
from kfm.turn.v1 import turn_pb2

BOUND_SECONDS = 20
PLAIN = "id: {id}\nversion: 1.0.0\nname: N\ndescription: D\nsystem_prompt: {{template_file: prompt.md}}\n"
WHOLE = """\
id: scribe
version: 2.1.0
name: The scribe
description: Writes.
author: Somebody
provider_settings: {default_provider: openai, default_model: gpt-x}
system_prompt:
  template_file: prompt.md
  variables: [{name: tone, default: dry}]
knowledge:
  sources: [{type: directory, path: knowledge}]
category: writing
tags: [prose, dry]
capabilities: [write]
limits: {max_turn_seconds: 1.5, max_steps: 5, max_attempts: 2, max_tokens: 5000, max_cost_usd: 0.25}
"""


def write(folder: Path, manifest: str, prompt: str = "Be {{ tone }}.", **documents: str) -> Path:
    """Writes a pack as an operator would: a new one is renamed into place whole."""
    new = folder if folder.exists() else folder.with_name(f".{folder.name}")
    (new / "knowledge").mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        (new / "knowledge" / f"{name}.md").write_text(text)
    (new / "prompt.md").write_text(prompt)
    (new / "manifest.yaml").write_text(manifest)
    return new.rename(folder)


@dataclass
class Memory:
    """Serves Ingest of a Memory service: records what it gets, and fails while `failure` is set."""

    failure: AgentShellError | None = None
    ingested: list[tuple[str, str, bool, dict[str, tuple[str, bytes]]]] = field(default_factory=list[Any])
    attempted: asyncio.Condition = field(default_factory=asyncio.Condition)
    attempts: int = 0

    def register(self, server: grpc.aio.Server) -> None:
        handler = grpc.stream_unary_rpc_method_handler(
            self._ingest,  # pyright: ignore[reportArgumentType] - the stubs know only blocking handlers
            memory_service_pb2.IngestRequest.FromString,
            memory_service_pb2.IngestResponse.SerializeToString,
        )
        server.add_registered_method_handlers("kfm.memory.v1.MemoryService", {"Ingest": handler})

    async def _ingest(
        self, requests: AsyncIterator[memory_service_pb2.IngestRequest], _context: object
    ) -> memory_service_pb2.IngestResponse:
        async with self.attempted:
            self.attempts += 1
            self.attempted.notify_all()
        start = (await anext(requests)).start
        documents: dict[str, tuple[str, bytes]] = {}
        async for request in requests:
            if request.HasField("document"):
                documents[request.document.source_uri] = (request.document.media_type, b"")
            else:
                name = next(reversed(documents))
                documents[name] = (documents[name][0], documents[name][1] + request.content)
        if self.failure:
            raise self.failure
        self.ingested.append((call.tenant(), start.namespace, start.replace_all, documents))
        return memory_service_pb2.IngestResponse(document_count=len(documents))


class Mesh:
    """The PersonalityService and its peer, with helpers to call it."""

    def __init__(
        self,
        packs: Path,
        memory: Memory,
        service: PersonalityService,
        to_service: grpc.aio.Channel,
        served: Member,
    ) -> None:
        self.packs = packs
        self.memory = memory
        self.service = service
        self._stub = personality_service_pb2_grpc.PersonalityServiceStub(to_service)
        self._key = served.key
        self._served = served
        self.tenant = served.key("acme")

    def options(self, directory: Path) -> tuple[str, ...]:
        """Returns the options for a command to reach it, as a tenant and as an operator."""
        key = directory / "api-key"
        shutil.copy(self._served.mesh_key_file, directory)
        key.write_text(self.tenant[0][1].removeprefix("Bearer "))
        return ("--address", self._served.server.address, "--key-file", str(key), "--data-dir", str(directory))

    async def get(self, personality_id: str = "", digest: str = "", tenant: str = "acme") -> pb.Personality:
        request = pb.GetRequest(personality_id=personality_id, digest=digest)
        return (await self._stub.Get(request, metadata=self._key(tenant), timeout=BOUND_SECONDS)).personality

    async def list(self, page_size: int = 0, page_token: str = "") -> pb.ListResponse:
        return await self.ask(pb.ListRequest(page_size=page_size, page_token=page_token))

    async def ask(self, request: pb.ListRequest) -> pb.ListResponse:
        return await self._stub.List(request, metadata=self.tenant, timeout=BOUND_SECONDS)

    async def failures(self) -> Sequence[Failure]:
        """Returns the packs' faults as an operator sees them."""
        listed = self._stub.List(pb.ListRequest(), metadata=self._served.operator(), timeout=BOUND_SECONDS)
        return (await listed).failures

    async def reload(self, metadata: tuple[tuple[str, str]] | None = None) -> pb.ReloadResponse:
        """Reloads as an operator, or as the caller in the metadata."""
        metadata = metadata or self._served.operator()
        return await self._stub.Reload(pb.ReloadRequest(), metadata=metadata, timeout=BOUND_SECONDS)

    @asynccontextmanager
    async def watch(
        self, metadata: tuple[tuple[str, str]] | None = None
    ) -> AsyncGenerator[Callable[[], Awaitable[pb.WatchResponse]]]:
        """Yields a function that returns the next change, as seen by an operator or the caller in the metadata."""
        metadata = metadata or self._served.operator()
        watching = self._stub.Watch(pb.WatchRequest(), metadata=metadata, timeout=BOUND_SECONDS)
        changes = aiter(watching)
        try:
            yield lambda: anext(changes)
        finally:
            watching.cancel()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """A serving mesh with an empty packs directory. The test calls the service's `start`."""
    async with serving(tmp_path) as mesh:
        yield mesh


@asynccontextmanager
async def serving(tmp_path: Path, **config: Any) -> AsyncGenerator[Mesh]:
    packs, memory = tmp_path / "packs", Memory()
    packs.mkdir(exist_ok=True)
    async with member() as served, channel.connect(served.mesh_address, served.keyring) as to_memory:
        configured = PersonalityConfig(directories=(packs,), default="scribe", **config)
        service = PersonalityService(configured, to_memory, tmp_path / "cache")
        served.server.add("kfm.memory.v1.MemoryService", memory.register)
        served.server.add(
            "kfm.personality.v1.PersonalityService",
            lambda it: personality_service_pb2_grpc.add_PersonalityServiceServicer_to_server(service, it),
        )
        async with await served.start() as to_service:
            yield Mesh(packs, memory, service, to_service, served)
            await service.stop()


@asynccontextmanager
async def unread(service: PersonalityService) -> AsyncGenerator[None]:
    """Holds off the service's watcher while packs are written file by file, so that it reads none half written."""
    async with service._reloading:  # pyright: ignore[reportPrivateUsage] - no other way to hold it off
        yield


async def ready(mesh: Mesh) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        await mesh.service.knowledge_ready()


async def test_a_personality_is_served_as_its_pack_describes_it(mesh: Mesh) -> None:
    write(mesh.packs / "scribe", WHOLE, a="# A")
    await mesh.service.start()
    await ready(mesh)
    personality = await mesh.get("scribe")
    assert personality.digest.startswith("sha256:")
    assert personality.HasField("load_time")
    expected = pb.Personality(
        personality_id="scribe",
        version="2.1.0",
        display_name="The scribe",
        description="Writes.",
        author="Somebody",
        digest=personality.digest,
        model=turn_pb2.ModelChoice(provider="openai", model="gpt-x"),
        system_prompt="Be dry.",
        knowledge_namespaces=["knowledge/scribe"],
        limits=turn_pb2.TurnLimits(max_steps=5, max_attempts=2),
        load_time=personality.load_time,
        knowledge_state=pb.KNOWLEDGE_STATE_READY,
        category="writing",
        tags=["prose", "dry"],
        capabilities=["write"],
        source="packs/scribe",
        is_default=True,
    )
    expected.limits.max_tokens = 5000
    expected.limits.max_cost.CopyFrom(Money(currency_code="USD", amount_micros=250_000))
    expected.limits.max_duration.FromTimedelta(timedelta(seconds=1.5))
    assert personality == expected
    assert await mesh.get("") == personality, "an empty id is the configuration's default"
    expected.ClearField("system_prompt")
    assert await mesh.list() == pb.ListResponse(personalities=[expected], default_personality_id="scribe")


async def test_lists_are_paged_by_token(mesh: Mesh) -> None:
    for personality_id in "bca":
        write(mesh.packs / personality_id, PLAIN.format(id=personality_id), "P")
    await mesh.service.start()
    first = await mesh.list(page_size=2)
    second = await mesh.list(page_size=2, page_token=first.next_page_token)
    pages = [[personality.personality_id for personality in page.personalities] for page in (first, second)]
    assert (pages, second.next_page_token) == ([["a", "b"], ["c"]], "")
    for malformed in ("x", "!!", first.next_page_token[:-1], "é"):
        error = await refusal(mesh.list(page_token=malformed))
        assert error.reason == error_pb2.ERROR_REASON_PAGE_TOKEN_INVALID


async def test_an_unknown_personality_is_not_found_and_the_loaded_ones_are_named(mesh: Mesh) -> None:
    write(mesh.packs / "a", PLAIN.format(id="a"), "P")
    await mesh.service.start()
    error = await refusal(mesh.get("nobody"))
    assert error.reason == error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND
    assert error.message == "no personality 'nobody' is loaded; loaded are: a"
    assert error.metadata == {"personality_id": "nobody"}


async def test_a_pinned_version_is_served_however_many_follow_it_and_after_a_restart(tmp_path: Path) -> None:
    digests: list[str] = []
    async with serving(tmp_path) as mesh:
        for number in range(VERSIONS_KEPT + 2):
            async with unread(mesh.service):
                write(mesh.packs / "a", PLAIN.format(id="a"), f"Version {number}.")
            await (mesh.reload() if number else mesh.service.start())
            digests.append((await mesh.get("a")).digest)
    async with unread(mesh.service):
        write(mesh.packs / "a", PLAIN.format(id="a"), "The version of now.")
    async with serving(tmp_path) as mesh:
        await mesh.service.start()
        prompts = [(await mesh.get("a", digest)).system_prompt for digest in digests]
        assert prompts == [f"Version {number}." for number in range(VERSIONS_KEPT + 2)]
        assert (await mesh.get("a")).system_prompt == "The version of now."
        for personality_id, digest in (("b", digests[0]), ("a", f"sha256:{'0' * 64}"), ("a", "sha256:../a")):
            error = await refusal(mesh.get(personality_id, digest))
            assert error.reason == error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND
            assert error.message.startswith(f"version {digest!r} of personality {personality_id!r} is not kept")
            assert error.metadata == {"personality_id": personality_id, "digest": digest}


async def test_reload_says_how_many_packs_are_loaded_and_what_is_wrong_with_the_others(mesh: Mesh) -> None:
    await mesh.service.start()
    write(mesh.packs / "a", PLAIN.format(id="a"), "P")
    write(mesh.packs / "b", "id: b\n", "P")
    for _ in range(2):
        response = await mesh.reload()
        assert response.loaded_pack_count == 1
        [failure] = response.failures
        assert failure.reason == error_pb2.ERROR_REASON_PACK_INVALID
        assert failure.message == "packs/b/manifest.yaml:1: version: missing; add it (and 3 more)"
        assert dict(failure.metadata) == {"source": "packs/b", "file": "packs/b/manifest.yaml", "line": "1"}
        assert list(await mesh.failures()) == [failure]


async def test_a_tenant_makes_nothing_be_read_again_and_hears_of_no_pack_that_is_broken(mesh: Mesh) -> None:
    write(mesh.packs / "a", PLAIN.format(id="a"), "P")
    write(mesh.packs / "b", "id: b\n", "P")
    await mesh.service.start()
    assert len(await mesh.failures()) == 1
    assert (await refusal(mesh.reload(mesh.tenant))).reason == error_pb2.ERROR_REASON_PERMISSION_DENIED
    assert list((await mesh.list()).failures) == []
    async with mesh.watch(mesh.tenant) as change, mesh.watch() as told:
        assert (await change()).loaded.personality_id == (await told()).loaded.personality_id == "a"
        write(mesh.packs / "c", "id: c\n", "P")
        assert (await told()).HasField("rejected")
        write(mesh.packs / "d", PLAIN.format(id="d"), "P")
        assert (await change()).loaded.personality_id == "d"


async def test_a_watcher_sees_what_is_there_and_then_each_change_on_disk(mesh: Mesh) -> None:
    write(mesh.packs / "a", PLAIN.format(id="a"), "First.")
    await mesh.service.start()
    async with mesh.watch() as change:
        assert (await change()).loaded == await mesh.get("a")
        (mesh.packs / "a" / "prompt.md").write_text("Second.")
        assert (await change()).loaded.system_prompt == "Second."
        write(mesh.packs / "b", PLAIN.format(id="b"), "New.")
        assert (await change()).loaded == await mesh.get("b")
        (mesh.packs / "a" / "prompt.md").write_text("{{ nobody }}")
        rejected = (await change()).rejected
        assert rejected.reason == error_pb2.ERROR_REASON_PACK_INVALID
        assert dict(rejected.metadata) == {
            "source": "packs/a",
            "file": "packs/a/prompt.md",
            "line": "1",
            "personality_id": "a",
            "version": "1.0.0",
        }
        assert REGISTRY.get_sample_value("agentshell_packs", {"state": "rejected"}) == 1
        assert (await mesh.get("a")).system_prompt == "Second."
        shutil.rmtree(mesh.packs / "b")
        while (removed := await change()).HasField("rejected"):  # A half-deleted folder is a broken pack.
            continue
        assert removed == pb.WatchResponse(removed_personality_id="b")
        assert (await refusal(mesh.get("b"))).reason == error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND


async def test_a_change_right_after_the_start_is_seen(mesh: Mesh) -> None:
    await mesh.service.start()
    write(mesh.packs / "a", PLAIN.format(id="a"), "P")
    async with mesh.watch() as change:
        assert (await change()).loaded.personality_id == "a"


async def test_a_watcher_that_falls_behind_is_told_to_watch_again(mesh: Mesh) -> None:
    write(mesh.packs / "a", PLAIN.format(id="a"), "P")
    await mesh.service.start()
    context: Any = None  # Calls the handler directly: a socket's buffers would read ahead.
    changes = mesh.service.Watch(pb.WatchRequest(), context)
    assert (await anext(changes)).loaded.personality_id == "a"
    for number in range(PENDING_CHANGES + 1):
        write(mesh.packs / f"b{number}", PLAIN.format(id=f"b{number}"), "P")
    await mesh.reload()
    pending = [(await anext(changes)).loaded.personality_id for _ in range(PENDING_CHANGES)]
    assert len(set(pending)) == PENDING_CHANGES
    with pytest.raises(AgentShellError) as caught:
        await anext(changes)
    assert caught.value.reason == error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE
    assert caught.value.message == f"the caller fell {PENDING_CHANGES} changes behind: watch again, and read faster"


async def test_a_directory_that_is_not_there_stops_the_start(mesh: Mesh) -> None:
    mesh.packs.rmdir()
    with pytest.raises(AgentShellError) as caught:
        await mesh.service.start()
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID


async def test_knowledge_is_ingested_for_all_tenants_and_again_only_when_it_changes(mesh: Mesh) -> None:
    long = "x" * 600_000
    write(mesh.packs / "scribe", WHOLE, a="# A", long=long)
    await mesh.service.start()
    await ready(mesh)
    documents = {
        "knowledge/a.md": ("text/markdown", b"# A"),
        "knowledge/long.md": ("text/markdown", long.encode()),
    }
    expected = [(call.SHARED_TENANT, "knowledge/scribe", True, documents)]
    assert mesh.memory.ingested == expected
    write(mesh.packs / "scribe", WHOLE, "Another prompt.")
    await mesh.reload()
    assert (await mesh.get("scribe")).knowledge_state == pb.KNOWLEDGE_STATE_READY
    (mesh.packs / "scribe" / "knowledge" / "long.md").unlink()
    await mesh.reload()
    await ready(mesh)
    documents = {"knowledge/a.md": documents["knowledge/a.md"]}
    assert mesh.memory.ingested == [*expected, (call.SHARED_TENANT, "knowledge/scribe", True, documents)]


async def test_knowledge_waits_for_a_memory_that_is_not_there_yet(mesh: Mesh) -> None:
    mesh.memory.failure = AgentShellError(error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE, "starting")
    write(mesh.packs / "scribe", WHOLE, a="# A")
    await mesh.service.start()
    assert (await mesh.get("scribe")).knowledge_state == pb.KNOWLEDGE_STATE_LOADING
    async with asyncio.timeout(BOUND_SECONDS), mesh.memory.attempted:
        await mesh.memory.attempted.wait_for(lambda: mesh.memory.attempts >= 2)
    mesh.memory.failure = None
    await ready(mesh)
    assert (await mesh.get("scribe")).knowledge_state == pb.KNOWLEDGE_STATE_READY


async def test_knowledge_that_is_refused_has_failed_until_it_is_mended(mesh: Mesh) -> None:
    mesh.memory.failure = AgentShellError(error_pb2.ERROR_REASON_TOO_LARGE, "too large")
    write(mesh.packs / "scribe", WHOLE, a="# A")
    await mesh.service.start()
    async with asyncio.timeout(BOUND_SECONDS):
        while (await mesh.get("scribe")).knowledge_state != pb.KNOWLEDGE_STATE_FAILED:
            continue
    mesh.memory.failure = None
    write(mesh.packs / "scribe", WHOLE, a="# Shorter")
    await mesh.reload()
    await ready(mesh)
    assert (await mesh.get("scribe")).knowledge_state == pb.KNOWLEDGE_STATE_READY


async def test_knowledge_that_was_refused_is_tried_again_by_itself(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge, "_LAST_RETRY_SECONDS", 0.01)
    mesh.memory.failure = AgentShellError(error_pb2.ERROR_REASON_INTERNAL, "a defect")
    write(mesh.packs / "scribe", WHOLE, a="# A")
    await mesh.service.start()
    async with asyncio.timeout(BOUND_SECONDS), mesh.memory.attempted:
        await mesh.memory.attempted.wait_for(lambda: mesh.memory.attempts >= 2)
    mesh.memory.failure = None
    await ready(mesh)


async def test_a_personality_that_is_gone_holds_nobody_up(mesh: Mesh) -> None:
    mesh.memory.failure = AgentShellError(error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE, "down")
    folder = write(mesh.packs / "scribe", WHOLE, a="# A")
    await mesh.service.start()
    shutil.rmtree(folder)
    await mesh.reload()
    await ready(mesh)
    assert mesh.memory.ingested == []
