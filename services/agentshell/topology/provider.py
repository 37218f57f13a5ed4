"""The Provider service: models."""

from __future__ import annotations

import contextlib
import os
from functools import partial

from agentshell.provider.service import ProviderService
from agentshell.topology.parts import Member, Parts
from kfm.provider.v1.provider_service_pb2_grpc import add_ProviderServiceServicer_to_server


async def build(parts: Parts) -> Member:
    """Builds the service with all its vendors."""
    async with contextlib.AsyncExitStack() as stack:
        opening = ProviderService.open(parts.config.provider, os.environ, await parts.database())
        service = await stack.enter_async_context(opening)
        open_parts = stack.pop_all()
    return Member(
        {"kfm.provider.v1.ProviderService": partial(add_ProviderServiceServicer_to_server, service)},
        stop=lambda _seconds: open_parts.aclose(),
    )
