"""PersonalityService: the packs as the mesh sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import grpc.aio
import structlog
from prometheus_client import Gauge

from agentshell.mesh import call, errors, paging
from agentshell.mesh.config import PersonalityConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.personality import loader, tool_code
from agentshell.personality.archives import Archives
from agentshell.personality.knowledge import Knowledge, namespace
from agentshell.personality.loader import Change, Loader, Origin, Rejected, Removed, named
from agentshell.personality.pack import Pack
from agentshell.personality.registry import Registry
from agentshell.personality.versions import KEPT_DAYS, Versions
from kfm.content.v1.content_pb2 import Money
from kfm.error.v1 import error_pb2
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.personality.v1 import personality_service_pb2_grpc
from kfm.turn.v1.turn_pb2 import PlanStrategy

_log = structlog.get_logger("agentshell.personality")

PACKS: Final = Gauge(
    "agentshell_packs", "Versions of personalities that are live, and packs that are rejected.", ["state"]
)

PENDING_CHANGES = 256
"""How many changes a watcher may fall behind."""
_IDS_NAMED = 20
_CHANGES_LOGGED = 20
_WATCH_RETRY_SECONDS = 5.0

Watch = Callable[[], AsyncGenerator[Collection[Origin]]]


class PersonalityService(personality_service_pb2_grpc.PersonalityServiceServicer):
    """Serves the packs of the configured directories, as they change, and of the configured archives.

    `memory` gets their knowledge. `cache` holds copies of archives, and versions that turns are pinned to; None:
    neither is kept.
    """

    def __init__(self, config: PersonalityConfig, memory: grpc.aio.Channel, cache: Path | None = None) -> None:
        self._config = config
        directories = config.directories or (loader.shipped(),)
        archives = Archives(config, cache)
        self._loader = Loader(directories, archives, folders=config.allow_unsigned != "none")
        self._watches = [self._loader.watch, archives.watch] if archives.files else [self._loader.watch]
        self._registry = Registry(config.versions)
        self._versions = Versions(cache)
        self._knowledge = Knowledge(memory)
        self._shelved: dict[str, set[str]] = {}  # Namespaces wanted, by personality.
        self._watchers: set[asyncio.Queue[pb.WatchResponse]] = set()
        self._reloading = asyncio.Lock()
        self._watching: list[asyncio.Task[None]] = []
        self._loaded = asyncio.Event()

    async def start(self) -> None:
        """Loads the packs and, from then on, each change to them. A malformed pack is logged and skipped.

        Raises CONFIG_INVALID if a directory cannot be read.
        """
        self._loader.check()
        self._watching = [asyncio.create_task(self._follow(watch)) for watch in self._watches]
        await asyncio.sleep(0)  # The watches start before the packs are read: no change falls between the two.
        await self.reload()
        await self._on_disk(self._versions.forget)
        self._loaded.set()
        for default in dict.fromkeys((self._config.default, *self._config.tenant_defaults.values())):
            if self._find(default) is None:
                _log.warning("a default personality is not loaded", personality_id=default)

    async def stop(self) -> None:
        """Stops watching and ingesting."""
        for watching in self._watching:
            watching.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self._knowledge.stop()

    async def knowledge_ready(self) -> None:
        """Waits until the knowledge of all packs is in memory. That may be never: bound the wait."""
        await self._knowledge.ready()

    async def List(
        self, request: pb.ListRequest, context: grpc.aio.ServicerContext[pb.ListRequest, pb.ListResponse]
    ) -> pb.ListResponse:
        """Lists the personalities by id. Raises PAGE_TOKEN_INVALID."""
        size = paging.page_size(request.page_size, default=50, most=500)
        (after_id,) = paging.decode(request, request.page_token, str) or ("",)
        response = pb.ListResponse(default_personality_id=self._default_id())
        if not request.page_token and call.is_operator():
            response.failures.extend(errors.to_failure(rejected.error()) for rejected in self._loader.rejected())
        for personality_id in self._registry.after(after_id):
            if len(response.personalities) >= size:  # All versions of a personality are on one page.
                response.next_page_token = paging.encode(request, response.personalities[-1].personality_id)
                break
            found = [one for one in self._registry.versions(personality_id) if _is_asked_for(one, request)]
            response.personalities.extend(self._listed(personality) for personality in found)
        return response

    async def Get(
        self, request: pb.GetRequest, context: grpc.aio.ServicerContext[pb.GetRequest, pb.GetResponse]
    ) -> pb.GetResponse:
        """Returns a personality, once the packs are loaded. Raises PERSONALITY_NOT_FOUND."""
        await self._loaded.wait()
        asked = request.personality_id or self._default_id()
        found = self._find(asked, request.digest)
        if found is None and request.digest:
            found = await asyncio.to_thread(self._versions.find, asked.partition("@")[0], request.digest)
        if found is None:
            raise self._not_found(asked, request.digest)
        return pb.GetResponse(personality=self._as_it_is(found, with_tool_code=request.with_tool_code))

    async def Reload(
        self, request: pb.ReloadRequest, context: grpc.aio.ServicerContext[pb.ReloadRequest, pb.ReloadResponse]
    ) -> pb.ReloadResponse:
        """Reads all packs again. Raises PERMISSION_DENIED, and CONFIG_INVALID if a directory cannot be read."""
        call.require_operator()
        await self.reload()
        failures = [errors.to_failure(rejected.error()) for rejected in self._loader.rejected()]
        return pb.ReloadResponse(loaded_pack_count=len(self._loader.packs), failures=failures)

    async def Watch(
        self, request: pb.WatchRequest, context: grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchResponse]
    ) -> AsyncGenerator[pb.WatchResponse]:
        """Streams each personality as it is, then each change; to an operator also what is wrong with packs.

        Raises SERVICE_UNAVAILABLE to a caller that falls `PENDING_CHANGES` behind.
        """
        changes = asyncio.Queue[pb.WatchResponse](PENDING_CHANGES)
        self._watchers.add(changes)
        try:
            for personality_id in self._registry.ids:
                for personality in self._registry.versions(personality_id):
                    yield pb.WatchResponse(loaded=self._as_it_is(personality))
            while changes in self._watchers or not changes.empty():
                change = await changes.get()
                if not change.HasField("rejected") or call.is_operator():
                    yield change
        finally:
            self._watchers.discard(changes)
        raise AgentShellError(
            error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
            f"the caller fell {PENDING_CHANGES} changes behind: watch again, and read faster",
            retry_delay=timedelta(seconds=1),
        )

    async def _follow(self, watch: Watch) -> None:
        """Reloads what changes on disk. Keeps retrying if the system cannot watch."""
        while True:
            try:
                async with aclosing(watch()) as changes:
                    async for origins in changes:
                        await self.reload(origins)
            except Exception as error:
                _log.error("hot reload failed", retry_seconds=_WATCH_RETRY_SECONDS, exc_info=error)
            await asyncio.sleep(_WATCH_RETRY_SECONDS)
            with suppress(AgentShellError):  # The next round reports it again.
                await self.reload()

    async def reload(self, origins: Collection[Origin] | None = None) -> None:
        """Reads these origins (None: all) again, and the folders that were malformed. Raises CONFIG_INVALID."""
        async with self._reloading:
            changes = await self._loader.reload(origins)
            ids = list(dict.fromkeys(_id(change) for change in changes if not isinstance(change, Rejected)))
            live = self._live(ids)
            for change in changes:
                self._apply(change)
            live += self._live(ids)
            await self._on_disk(lambda: self._versions.keep(live))
            self._log(changes)
            for personality_id in ids:
                self._shelve(personality_id)
            for change in changes:
                self._publish(self._told(change))
        PACKS.labels("live").set(len(self._loader.packs))
        PACKS.labels("rejected").set(len(self._loader.rejected()))

    def _live(self, personality_ids: Iterable[str]) -> list[pb.Personality]:
        return [one for personality_id in personality_ids for one in self._registry.versions(personality_id)]

    async def _on_disk(self, work: Callable[[], None]) -> None:
        """Does work on the versions kept on disk. If the disk fails, the packs serve nevertheless."""
        try:
            await asyncio.to_thread(work)
        except OSError as error:
            _log.error("versions cannot be stored: turns that wait may fail after a restart", exc_info=error)

    def _apply(self, change: Change) -> None:
        match change:
            case Pack():
                self._registry.load(_describe(change))
            case Removed(personality_id, version):
                self._registry.remove(personality_id, version)
            case Rejected():
                pass

    def _log(self, changes: Sequence[Change]) -> None:
        """Logs what changed; for many packs at once, as at the start, only how many, and what is wrong."""
        quiet = len(changes) > _CHANGES_LOGGED
        if quiet:
            _log.info("packs loaded", changes=len(changes), live=len(self._loader.packs))
        for change in changes:
            match change:
                case Rejected():
                    _log.warning("pack rejected", message=change.error().message)
                case Pack() if not quiet:
                    _log.info("pack loaded", personality_id=change.personality_id, digest=change.digest)
                case Removed(personality_id, version) if not quiet:
                    _log.info("pack removed", personality_id=personality_id, version=version)
                case _:
                    pass

    def _shelve(self, personality_id: str) -> None:
        """Has the knowledge of a personality's live versions ingested, each in its namespace, and drops the rest."""
        wanted = {
            self._namespace(personality): self._loader.packs[personality_id, personality.version]
            for personality in self._registry.versions(personality_id)
        }
        for name in self._shelved.pop(personality_id, set()) - wanted.keys():
            self._knowledge.drop(name)
        for name, pack in wanted.items():
            self._knowledge.want(name, pack)
        if wanted:
            self._shelved[personality_id] = set(wanted)

    def _told(self, change: Change) -> pb.WatchResponse:
        """Returns a change as watchers see it; for a version that is gone, the one that answers in its place."""
        match change:
            case Pack():
                personality = self._registry.live(change.personality_id, change.manifest.version)
            case Removed(personality_id):
                personality = self._registry.default(personality_id)
                if personality is None:
                    return pb.WatchResponse(removed_personality_id=personality_id)
            case Rejected():
                return pb.WatchResponse(rejected=errors.to_failure(change.error()))
        return pb.WatchResponse(loaded=self._as_it_is(personality) if personality else None)

    def _publish(self, response: pb.WatchResponse) -> None:
        for changes in list(self._watchers):
            if changes.full():
                self._watchers.discard(changes)
            else:
                changes.put_nowait(response)

    def _default_id(self) -> str:
        """Returns the personality that answers the caller's tenant if it names none."""
        return self._config.tenant_defaults.get(call.tenant(), self._config.default)

    def _find(self, asked: str, digest: str = "") -> pb.Personality | None:
        """Returns the live personality with this id, or `id@version`; by a digest also one that is no longer live."""
        personality_id, _, version = asked.partition("@")
        if digest:
            return self._registry.pinned(personality_id, digest)
        if version:
            return self._registry.live(personality_id, version)
        return self._registry.default(personality_id)

    def _namespace(self, personality: pb.Personality) -> str:
        """Returns where a version's knowledge is: for the default one, and for past ones, under the plain name."""
        default = self._registry.default(personality.personality_id)
        is_beside = self._is_live(personality) and default is not personality
        return namespace(personality.personality_id, personality.version if is_beside else "")

    def _is_live(self, personality: pb.Personality) -> bool:
        return self._registry.live(personality.personality_id, personality.version) is personality

    def _as_it_is(self, personality: pb.Personality, *, with_tool_code: bool = False) -> pb.Personality:
        """Returns a copy with its current state: whether it is live, and where its knowledge is."""
        copy = pb.Personality()
        copy.CopyFrom(personality)
        if not with_tool_code:
            copy.ClearField("tool_code")
        if copy.knowledge_namespaces:
            copy.knowledge_namespaces[:] = [self._namespace(personality)]
            copy.knowledge_state = self._knowledge.state(copy.knowledge_namespaces[0])
        if self._is_live(personality):
            copy.source = named(self._loader.origins[copy.personality_id, copy.version])
            copy.is_default = personality is self._registry.default(copy.personality_id)
        return copy

    def _listed(self, personality: pb.Personality) -> pb.Personality:
        listed = self._as_it_is(personality)
        for field in ("system_prompt", "plan"):
            listed.ClearField(field)
        return listed

    def _not_found(self, asked: str, digest: str) -> AgentShellError:
        personality_id, _, version = asked.partition("@")
        live = [one.version for one in self._registry.versions(personality_id)]
        metadata = {"personality_id": asked}
        if digest:
            metadata["digest"] = digest
            message = (
                f"version {digest!r} of personality {personality_id!r} is not kept: the data directory of the "
                f"process keeps a version for {KEPT_DAYS} days after it was last live; "
                "leave the digest out for the newest"
            )
        elif live:
            wanted = version or f"{self._config.versions[personality_id]}, which 'personality.versions' asks for,"
            message = f"version {wanted} of personality {personality_id!r} is not loaded; loaded are: {', '.join(live)}"
        else:
            ids = self._registry.ids
            loaded = ", ".join(ids[:_IDS_NAMED]) + (", ..." if len(ids) > _IDS_NAMED else "") if ids else "none"
            message = f"no personality {personality_id!r} is loaded; loaded are: {loaded}"
        return AgentShellError(error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND, message, metadata=metadata)


def _id(change: Pack | Removed) -> str:
    return change.personality_id


def _is_asked_for(personality: pb.Personality, request: pb.ListRequest) -> bool:
    return (
        request.category in ("", personality.category)
        and set(request.tags) <= set(personality.tags)
        and set(request.capabilities) <= set(personality.capabilities)
    )


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
        category=manifest.category,
        tags=manifest.tags,
        capabilities=manifest.capabilities,
        strategy=PlanStrategy.Value(f"PLAN_STRATEGY_{(manifest.plan.strategy or 'unspecified').upper()}"),
        plan=pack.plan if pack.plan.steps else None,
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
    if limits.max_tokens is not None:
        personality.limits.max_tokens = limits.max_tokens
    if limits.max_cost_usd is not None:
        personality.limits.max_cost.CopyFrom(Money(currency_code="USD", amount_micros=round(limits.max_cost_usd * 1e6)))
    code = tool_code.of(pack)
    if code.ByteSize():
        personality.tool_code.CopyFrom(code)
    personality.load_time.GetCurrentTime()
    return personality
