"""Works out which abilities a request needs of a provider, beyond answering text with text. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kfm.content.v1.content_pb2 import Part
from kfm.provider.v1 import provider_service_pb2 as pb

_PREFIX = "ABILITY_"


def missing(generation: pb.Generation, abilities: Collection[pb.Ability.ValueType]) -> list[str]:
    """Returns the features that a request needs but `abilities` lack, such as `tool choice`, without duplicates."""
    needed = dict.fromkeys((*_of_conversation(generation), *_of_parameters(generation)))
    return [feature(ability) for ability in needed if ability not in abilities]


def feature(ability: pb.Ability.ValueType) -> str:
    """Returns an ability's name as error messages show it."""
    return pb.Ability.Name(ability).removeprefix(_PREFIX).lower().replace("_", " ")


def _of_conversation(generation: pb.Generation) -> Iterator[pb.Ability.ValueType]:
    if generation.tools:
        yield pb.ABILITY_TOOLS
    for message in generation.messages:
        for part in message.parts:
            yield from _of_part(part)


def _of_part(part: Part) -> Iterator[pb.Ability.ValueType]:
    match part.WhichOneof("kind"):
        case "image":
            yield pb.ABILITY_IMAGE_LINKS if part.image.HasField("uri") else pb.ABILITY_IMAGES
        case "tool_call" | "tool_result":
            yield pb.ABILITY_TOOLS
        case _:
            pass


def _of_parameters(generation: pb.Generation) -> Iterator[pb.Ability.ValueType]:
    parameters = generation.parameters
    if parameters.HasField("temperature"):
        yield pb.ABILITY_TEMPERATURE
    if parameters.HasField("top_p"):
        yield pb.ABILITY_TOP_P
    if parameters.HasField("seed"):
        yield pb.ABILITY_SEED
    if parameters.stop:
        yield pb.ABILITY_STOP
    if parameters.reasoning_effort:
        yield pb.ABILITY_REASONING_EFFORT
    if generation.HasField("tool_choice"):
        yield pb.ABILITY_TOOL_CHOICE
    if generation.HasField("output_schema"):
        yield pb.ABILITY_OUTPUT_SCHEMA
    if generation.HasField("prompt_cache"):
        yield pb.ABILITY_PROMPT_CACHE
        if generation.prompt_cache.key:
            yield pb.ABILITY_PROMPT_CACHE_KEY
        if generation.prompt_cache.HasField("ttl"):
            yield pb.ABILITY_PROMPT_CACHE_TTL
