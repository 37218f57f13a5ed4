"""What requests need from providers."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from agentshell.provider import abilities
from kfm.content.v1.content_pb2 import ROLE_USER, Image, Message, Part, Text, ToolCall
from kfm.provider.v1 import provider_service_pb2 as pb

EVERYTHING = pb.Generation(
    messages=[
        Message(
            role=ROLE_USER,
            parts=[
                Part(text=Text(text="hi")),
                Part(image=Image(media_type="image/png", data=b"png")),
                Part(image=Image(media_type="image/png", uri="https://example.org/a.png")),
                Part(tool_call=ToolCall(call_id="c", name="t")),
            ],
        )
    ],
    tools=[pb.ToolDefinition(name="t")],
    tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE),
    output_schema=Struct(),
    prompt_cache=pb.PromptCache(key="k", ttl=Duration(seconds=300)),
    parameters=pb.GenerationParameters(
        temperature=0, top_p=1, seed=0, stop=["END"], reasoning_effort=pb.REASONING_EFFORT_LOW, max_output_tokens=1
    ),
)


def test_every_field_of_a_request_that_a_vendor_may_lack_has_an_ability() -> None:
    """Fails if the contract gets a field that would be dropped silently."""
    of_calls = {"embeddings", "dimension", "moderation", "token count"}
    every = {abilities.feature(value) for value in pb.Ability.values()[1:]}
    assert set(abilities.missing(EVERYTHING, ())) == every - of_calls
    assert {field.name for field, _ in EVERYTHING.parameters.ListFields()} == set(
        pb.GenerationParameters.DESCRIPTOR.fields_by_name
    )


def test_what_there_is_is_not_missed_and_each_is_named_once() -> None:
    assert abilities.missing(EVERYTHING, pb.Ability.values()) == []
    assert abilities.missing(EVERYTHING, set(pb.Ability.values()) - {pb.ABILITY_TOOLS}) == ["tools"]
    assert abilities.missing(pb.Generation(messages=[Message(parts=[Part(text=Text(text="hi"))])]), ()) == []
