"""The Personality service: packs."""

from __future__ import annotations

from functools import partial

from agentshell.personality.service import PersonalityService
from agentshell.topology.parts import Member, Parts
from kfm.personality.v1.personality_service_pb2_grpc import add_PersonalityServiceServicer_to_server


async def build(parts: Parts) -> Member:
    """Builds the service over the configured directories and archives."""
    config = parts.config
    service = PersonalityService(config.personality, parts.channel("memory"), config.data_dir / "packs")
    return Member(
        {"kfm.personality.v1.PersonalityService": partial(add_PersonalityServiceServicer_to_server, service)},
        service.start,
        lambda _seconds: service.stop(),
    )
