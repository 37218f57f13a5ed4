"""The estimate of tokens, of what a model is asked. Pure."""

from __future__ import annotations

from google.protobuf import json_format

from agentshell.tokens import estimate, estimate_message, estimate_parts
from kfm.provider.v1 import provider_service_pb2 as pb

__all__ = ["estimate", "estimate_generation", "estimate_parts"]


def estimate_generation(generation: pb.Generation) -> int:
    """Returns about how many tokens a model would read."""
    count = sum(map(estimate_message, generation.messages))
    for tool in generation.tools:
        count += (
            estimate(tool.name) + estimate(tool.description) + estimate(json_format.MessageToJson(tool.input_schema))
        )
    if generation.HasField("output_schema"):
        count += estimate(json_format.MessageToJson(generation.output_schema))
    return count
