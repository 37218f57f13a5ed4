"""Runs the tools that packs bring: in a sandbox, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from google.protobuf.struct_pb2 import Value

from agentshell.mesh.errors import AgentShellError
from agentshell.tool.egress import Egress
from agentshell.tool.grant import Grant
from agentshell.tool.sandbox import image, outcome, tier
from agentshell.tool.sandbox.ability import Abilities
from agentshell.tool.sandbox.frame import FrameError
from agentshell.tool.sandbox.limits import Limits
from agentshell.tool.sandbox.native import NativeTier
from agentshell.tool.sandbox.pool import Pool
from agentshell.tool.sandbox.tier import Tier
from agentshell.tool.sandbox.wasm import WasmTier
from agentshell.tool.sandbox.worker import WorkerDied, unavailable
from kfm.personality.v1 import personality_service_pb2 as pb

_log = structlog.get_logger("agentshell.tool")

Tell = Callable[[str], None]
_WASM: Final = pb.SANDBOX_TIER_WASM


class Sandbox:
    """The sandboxes of this process. A tier opens at its first call."""

    def __init__(self, egress: Egress, tiers: Mapping[pb.SandboxTier.ValueType, Tier]) -> None:
        """`egress` makes their web requests, and is closed by whoever made it."""
        self.config = egress.config
        self._limits = Limits.of(egress.config)
        self._size = egress.config.max_workers
        self._egress = egress
        self._tiers = tiers
        self._pools: dict[pb.SandboxTier.ValueType, Pool] = {}
        self._opening = asyncio.Lock()

    @classmethod
    def of(cls, egress: Egress, images: Path | None = None) -> Sandbox:
        """Returns the sandboxes that the configuration allows; `images` is where their images are kept."""
        config = egress.config
        limits = Limits.of(config)
        tiers: dict[pb.SandboxTier.ValueType, Tier] = {_WASM: WasmTier(limits, images or image.default_directory())}
        if config.native_python:
            tiers[pb.SANDBOX_TIER_NATIVE] = NativeTier(limits, config.native_python)
        return cls(egress, tiers)

    async def close(self) -> None:
        """Ends all processes that wait for calls."""
        for pool in self._pools.values():
            await pool.close()

    async def run(
        self,
        grant: Grant,
        code: pb.ToolCode,
        function: pb.ToolFunction,
        arguments: Mapping[str, Any],
        tell: Tell,
    ) -> Value:
        """Returns what a tool of a pack answers, any JSON; `tell` receives its progress.

        Raises SANDBOX_UNAVAILABLE, HOST_NOT_ALLOWED and all TOOL_ errors.
        """
        name = function.tool.name
        pool = await self._pool(code.tier or _WASM, tell)
        abilities = Abilities(grant, self._limits.budget(name), self._egress, tell)
        call = {
            "files": dict(code.files),
            "module": function.module,
            "function": name,
            "arguments": arguments,
        }
        async with pool.worker(grant.tenant_id) as worker:
            try:
                async with asyncio.timeout(self._limits.wall_seconds):
                    said = await worker.call(tier.request(call, self._limits), abilities.answer)
            except TimeoutError:
                raise outcome.timed_out(name) from None
            except WorkerDied as death:
                raise outcome.died(name, death.signal) from None
            except FrameError as error:
                raise outcome.crashed(name, f"its process sent something that is not a frame, {error}") from None
        return outcome.read(name, said)

    async def _pool(self, wanted: pb.SandboxTier.ValueType, tell: Tell) -> Pool:
        """Returns the workers of a tier, which it opens if needed. Raises SANDBOX_UNAVAILABLE."""
        async with self._opening:
            if wanted not in self._pools:
                if wanted not in self._tiers:
                    raise _not_allowed()
                found = self._tiers[wanted]
                await found.open(_said_aloud(tell))
                self._pools[wanted] = Pool(found.start, self._size, found.max_calls)
            return self._pools[wanted]


def _said_aloud(tell: Tell) -> Tell:
    def say(text: str) -> None:
        _log.warning(text)
        tell(text)

    return say


def _not_allowed() -> AgentShellError:
    return unavailable(
        "its pack asks for the native tier; an operator must allow it with configuration key 'tool.native_python'"
    )
