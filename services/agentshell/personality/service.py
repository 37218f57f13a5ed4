"""PersonalityService: the packs as the mesh sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path

import grpc.aio
import structlog

from agentshell.mesh import errors, paging
from agentshell.mesh.config import PersonalityConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.personality import loader
from agentshell.personality.knowledge import Knowledge, namespace
from agentshell.personality.loader import Change, Loader, Removed
from agentshell.personality.pack import Pack
from agentshell.personality.registry import VERSIONS_KEPT, Registry
from kfm.error.v1 import error_pb2
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.personality.v1 import personality_service_pb2_grpc
from kfm.tool.v1.tool_service_pb2 import Tool

_log = structlog.get_logger("agentshell.personality")

PENDING_CHANGES = 256
"""How many changes a watcher may fall behind."""
_IDS_NAMED = 20
_WATCH_RETRY_SECONDS = 5.0


class PersonalityService(personality_service_pb2_grpc.PersonalityServiceServicer):
    """Serves the packs of the configured directories, as they change; `memory` is where their knowledge goes."""

    def __init__(self, config: PersonalityConfig, memory: grpc.aio.Channel) -> None:
        self._default_id = config.default
        self._loader = Loader(config.directories or (loader.shipped(),))
        self._registry = Registry()
        self._knowledge = Knowledge(memory)
        self._watchers: set[asyncio.Queue[pb.WatchResponse]] = set()
        self._reloading = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._loaded = asyncio.Event()

    async def start(self) -> None:
        """Loads the packs, and from now on each change of them. A malformed pack is logged and skipped.

        Raises CONFIG_INVALID where a directory cannot be read.
        """
        self._loader.check()
        self._watching = asyncio.create_task(self._follow())
        await asyncio.sleep(0)  # The watch is set before the packs are read: no change falls between the two.
        await self._reload()
        self._loaded.set()
        if self._registry.newest(self._default_id) is None:
            _log.warning("the default personality is not loaded", personality_id=self._default_id)

    async def stop(self) -> None:
        """Ends watching and ingesting."""
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._knowledge.stop()

    async def knowledge_ready(self) -> None:
        """Returns when the knowledge of all packs is in memory. That may be never: bound the wait."""
        await self._knowledge.ready()

    async def List(
        self, request: pb.ListRequest, context: grpc.aio.ServicerContext[pb.ListRequest, pb.ListResponse]
    ) -> pb.ListResponse:
        """Lists the personalities by id. Raises PAGE_TOKEN_INVALID."""
        size = paging.page_size(request.page_size, default=50, most=500)
        (after_id,) = paging.decode(request, request.page_token, str) or ("",)
        page, more = self._registry.page(after_id, size)
        response = pb.ListResponse(next_page_token=paging.encode(request, page[-1].personality_id) if more else "")
        for personality in page:
            listed = self._as_it_is(personality)
            listed.ClearField("system_prompt")
            response.personalities.append(listed)
        return response

    async def Get(
        self, request: pb.GetRequest, context: grpc.aio.ServicerContext[pb.GetRequest, pb.GetResponse]
    ) -> pb.GetResponse:
        """Returns a personality, once the packs are loaded. Raises PERSONALITY_NOT_FOUND."""
        await self._loaded.wait()
        personality_id = request.personality_id or self._default_id
        if request.digest:
            found = self._registry.version(personality_id, request.digest)
        else:
            found = self._registry.newest(personality_id)
        if found is None:
            raise self._not_found(personality_id, request.digest)
        return pb.GetResponse(personality=self._as_it_is(found, with_tool_code=request.with_tool_code))

    async def Reload(
        self, request: pb.ReloadRequest, context: grpc.aio.ServicerContext[pb.ReloadRequest, pb.ReloadResponse]
    ) -> pb.ReloadResponse:
        """Reads all packs again. Raises CONFIG_INVALID where a directory cannot be read."""
        await self._reload()
        failures = [errors.to_failure(rejection) for rejection in self._loader.rejections()]
        return pb.ReloadResponse(loaded_count=len(self._registry.ids()), failures=failures)

    async def Watch(
        self, request: pb.WatchRequest, context: grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchResponse]
    ) -> AsyncGenerator[pb.WatchResponse]:
        """Streams each personality as it is, then each change.

        Raises SERVICE_UNAVAILABLE to a caller that falls `PENDING_CHANGES` behind.
        """
        changes = asyncio.Queue[pb.WatchResponse](PENDING_CHANGES)
        self._watchers.add(changes)
        try:
            for personality_id in self._registry.ids():
                if personality := self._registry.newest(personality_id):
                    yield pb.WatchResponse(loaded=self._as_it_is(personality))
            while changes in self._watchers or not changes.empty():
                yield await changes.get()
        finally:
            self._watchers.discard(changes)
        raise AgentShellError(
            error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
            f"the caller fell {PENDING_CHANGES} changes behind: watch again, and read faster",
            retry_delay=timedelta(seconds=1),
        )

    async def _follow(self) -> None:
        """Reloads what changes on disk. Where the system cannot watch, tries again and again."""
        while True:
            try:
                async with aclosing(self._loader.watch()) as changes:
                    async for folders in changes:
                        await self._reload(folders)
            except Exception as error:
                _log.error("hot reload failed", retry_seconds=_WATCH_RETRY_SECONDS, exc_info=error)
            await asyncio.sleep(_WATCH_RETRY_SECONDS)
            with suppress(AgentShellError):  # The next round says it again.
                await self._reload()

    async def _reload(self, folders: Collection[Path] | None = None) -> None:
        async with self._reloading:
            for change in await self._loader.reload(folders):
                self._publish(self._apply(change))

    def _apply(self, change: Change) -> pb.WatchResponse:
        match change:
            case Pack():
                personality = _describe(change)
                self._registry.load(personality)
                self._knowledge.want(change)
                _log.info("pack loaded", personality_id=change.personality_id, digest=change.digest)
                return pb.WatchResponse(loaded=self._as_it_is(personality))
            case Removed(personality_id):
                self._registry.remove(personality_id)
                self._knowledge.drop(personality_id)
                _log.info("pack removed", personality_id=personality_id)
                return pb.WatchResponse(removed_personality_id=personality_id)
            case AgentShellError():
                _log.warning("pack rejected", message=change.message)
                return pb.WatchResponse(rejected=errors.to_failure(change))

    def _publish(self, response: pb.WatchResponse) -> None:
        for changes in list(self._watchers):
            if changes.full():
                self._watchers.discard(changes)
            else:
                changes.put_nowait(response)

    def _as_it_is(self, personality: pb.Personality, *, with_tool_code: bool = False) -> pb.Personality:
        """Returns a copy that also says where its knowledge is now."""
        copy = pb.Personality()
        copy.CopyFrom(personality)
        if not with_tool_code:
            copy.ClearField("tool_code")
        if copy.knowledge_namespaces:
            copy.knowledge_state = self._knowledge.state(copy.personality_id)
        return copy

    def _not_found(self, personality_id: str, digest: str) -> AgentShellError:
        ids = self._registry.ids()
        named = ", ".join(ids[:_IDS_NAMED]) + (", ..." if len(ids) > _IDS_NAMED else "") if ids else "none"
        metadata = {"personality_id": personality_id}
        message = f"no personality {personality_id!r} is loaded; loaded are: {named}"
        if digest:
            metadata["digest"] = digest
            message = (
                f"version {digest} of personality {personality_id!r} is not kept: the last {VERSIONS_KEPT} versions "
                "loaded by this process are; leave the digest out for the newest"
            )
        return AgentShellError(error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND, message, metadata=metadata)


def _describe(pack: Pack) -> pb.Personality:
    manifest = pack.manifest
    personality = pb.Personality(
        personality_id=manifest.id,
        version=manifest.version,
        display_name=manifest.name,
        description=manifest.description,
        author=manifest.author,
        digest=pack.digest,
        system_prompt=pack.system_prompt,
        tools=manifest.tools.names,
        knowledge_namespaces=[namespace(manifest.id)] if pack.documents else [],
    )
    personality.model.provider = manifest.provider_settings.default_provider
    personality.model.model = manifest.provider_settings.default_model
    limits = manifest.limits
    if limits.max_turn_seconds is not None:
        personality.limits.max_duration.FromTimedelta(timedelta(seconds=limits.max_turn_seconds))
    if limits.max_steps is not None:
        personality.limits.max_steps = limits.max_steps
    if limits.max_attempts is not None:
        personality.limits.max_attempts = limits.max_attempts
    if pack.tools:
        personality.tool_code.CopyFrom(_code(pack))
    personality.load_time.GetCurrentTime()
    return personality


def _code(pack: Pack) -> pb.ToolCode:
    code = pb.ToolCode(
        files=pack.tool_files,
        http_hosts=pack.manifest.abilities.http_hosts,
        tier=pb.SandboxTier.Value(f"SANDBOX_TIER_{pack.manifest.tools.tier.upper()}"),
    )
    for function in pack.tools:
        tool = Tool(name=function.name, description=function.description)
        tool.input_schema.update(function.input_schema)
        tool.output_schema.update(function.output_schema)
        code.functions.add(tool=tool, module=function.module)
    return code
