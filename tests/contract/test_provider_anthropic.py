"""What only Anthropic has, or does in its own way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf import duration_pb2
from tests.contract.provider import (
    ASSISTANT,
    SYSTEM,
    USER,
    Part,
    Subject,
    question,
    refusal,
    said,
    struct,
    subject_of,
)
from tests.vendors.vendor_server import Fault, Reply

from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

Choice = pb.ToolChoice
OPEN = pb.ToolDefinition(name="open")


@pytest.fixture
async def anthropic() -> AsyncIterator[Subject]:
    async with subject_of("anthropic") as found:
        yield found


async def _sent(anthropic: Subject, generation: pb.Generation) -> dict[str, Any]:
    await anthropic.generate(generation)
    return anthropic.vendor.requests[-1].body


async def test_reasoning_goes_back_with_its_proof(anthropic: Subject) -> None:
    anthropic.vendor.reply = Reply(reasoning=("Let me ", "think."), reasoning_tokens=120)

    answer = await anthropic.generate(question())
    body = await _sent(anthropic, pb.Generation(messages=[*question().messages, answer.message, said(USER, "Sure?")]))

    kinds = [part.WhichOneof("kind") for part in answer.message.parts]
    assert kinds == ["reasoning", "reasoning", "text"]
    assert answer.message.parts[0].reasoning.text == "Let me think."
    assert answer.usage.reasoning_tokens == 120
    assert body["messages"][1] == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Let me think.", "signature": "c2lnbmVk"},
            {"type": "redacted_thinking", "data": "c2VjcmV0"},
            {"type": "text", "text": "Ready to serve."},
        ],
    }


CHOICES: list[tuple[pb.ToolChoice, dict[str, Any]]] = [
    (Choice(), {"type": "auto"}),
    (Choice(mode=Choice.MODE_AUTO, one_at_a_time=True), {"type": "auto", "disable_parallel_tool_use": True}),
    (Choice(mode=Choice.MODE_NONE, one_at_a_time=True), {"type": "none"}),
    (Choice(mode=Choice.MODE_REQUIRED), {"type": "any"}),
    (Choice(mode=Choice.MODE_REQUIRED, name="open"), {"type": "tool", "name": "open"}),
]


async def test_a_choice_of_tools_is_sent_as_anthropic_has_it(anthropic: Subject) -> None:
    for choice, expected in CHOICES:
        body = await _sent(anthropic, question(tools=[OPEN], tool_choice=choice))

        assert body["tool_choice"] == expected


ADAPTIVE = {"type": "adaptive", "display": "summarized"}
EFFORTS: list[tuple[pb.ReasoningEffort.ValueType, dict[str, Any]]] = [
    (pb.REASONING_EFFORT_UNSPECIFIED, {}),
    (pb.REASONING_EFFORT_NONE, {"thinking": {"type": "disabled"}}),
    (pb.REASONING_EFFORT_MINIMAL, {"thinking": ADAPTIVE, "output_config": {"effort": "low"}}),
    (pb.REASONING_EFFORT_MEDIUM, {"thinking": ADAPTIVE, "output_config": {"effort": "medium"}}),
    (pb.REASONING_EFFORT_HIGH, {"thinking": ADAPTIVE, "output_config": {"effort": "high"}}),
]


async def test_how_long_it_thinks_is_sent_as_anthropic_has_it(anthropic: Subject) -> None:
    for effort, expected in EFFORTS:
        body = await _sent(anthropic, question(parameters=pb.GenerationParameters(reasoning_effort=effort)))

        assert {name: body[name] for name in ("thinking", "output_config") if name in body} == expected


CACHED = pb.Generation(
    messages=[
        said(SYSTEM, "Be brief."),
        said(USER, "Hello."),
        said(ASSISTANT, Part(reasoning=content_pb2.Reasoning(text="hm", signature=b"anthropic/thinking/x"))),
        said(USER, "And?"),
    ],
    tools=[OPEN],
)


@pytest.mark.parametrize(("messages", "marked"), [(0, "Be brief."), (1, "Be brief."), (3, "Hello."), (9, "And?")])
async def test_what_comes_again_is_marked_where_it_ends(anthropic: Subject, messages: int, marked: str) -> None:
    body = await _sent(anthropic, _cached(CACHED, pb.PromptCache(message_count=messages)))

    blocks = [*body["tools"], *body["system"], *(block for message in body["messages"] for block in message["content"])]
    assert [(block["text"], block["cache_control"]) for block in blocks if "cache_control" in block] == [
        (marked, {"type": "ephemeral"})
    ]


async def test_without_instructions_the_tools_are_what_comes_again(anthropic: Subject) -> None:
    body = await _sent(anthropic, _cached(question(tools=[OPEN]), pb.PromptCache()))

    assert body["tools"][-1]["cache_control"] == {"type": "ephemeral"}
    assert "cache_control" not in str(body["messages"])


async def test_a_cache_is_kept_for_the_shortest_time_that_is_long_enough(anthropic: Subject) -> None:
    for seconds, expected in ((1, "5m"), (300, "5m"), (301, "1h"), (3600, "1h")):
        body = await _sent(anthropic, _cached(CACHED, pb.PromptCache(ttl=_seconds(seconds))))

        assert body["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": expected}
    error = await refusal(anthropic.generate(_cached(CACHED, pb.PromptCache(ttl=_seconds(3601)))))
    assert error.reason == error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED
    assert error.metadata["feature"] == "a prompt cache ttl of more than an hour"


async def test_a_schema_is_sent_as_far_as_anthropic_holds_to_it(anthropic: Subject) -> None:
    port = {"type": "integer", "minimum": 1}
    schema = struct({"type": "object", "properties": {"port": port}, "required": ["port"]})

    body = await _sent(anthropic, question(output_schema=schema))

    assert body["output_config"]["format"] == {
        "type": "json_schema",
        "schema": {
            "type": "object",
            "properties": {"port": {"type": "integer", "description": "{minimum: 1}"}},
            "required": ["port"],
            "additionalProperties": False,
        },
    }
    error = await refusal(anthropic.generate(question(output_schema=struct({"minimum": 1}))))
    assert error.reason == error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED
    assert error.metadata["feature"].startswith("this output schema: Schema must have a 'type'")


async def test_what_an_answer_used_is_told_as_it_begins(anthropic: Subject) -> None:
    anthropic.vendor.fault = Fault(stall_after=1)
    anthropic.vendor.reply = Reply(input_tokens=1000, cached_tokens=300, cache_write_tokens=100)
    stream = anthropic.adapter.stream(question(), anthropic.adapter.default_model)

    first = await anext(stream)
    await stream.aclose()

    usage = content_pb2.Usage(input_tokens=1000, cached_input_tokens=300, cache_write_tokens=100, output_tokens=1)
    assert first == [pb.GenerationDelta(usage=usage)]


async def test_all_that_is_read_is_counted_and_nothing_else_is_sent(anthropic: Subject) -> None:
    parameters = pb.GenerationParameters(max_output_tokens=64, stop=["END"], temperature=0.5)
    generation = pb.Generation(messages=CACHED.messages, tools=[OPEN], tool_choice=Choice(), parameters=parameters)

    await anthropic.count(generation)

    (request,) = anthropic.vendor.requests
    assert request.path == "/v1/messages/count_tokens"
    assert sorted(request.body) == ["messages", "model", "system", "tool_choice", "tools"]


def _cached(generation: pb.Generation, cache: pb.PromptCache) -> pb.Generation:
    made = pb.Generation(prompt_cache=cache)
    made.MergeFrom(generation)
    return made


def _seconds(seconds: int) -> duration_pb2.Duration:
    made = duration_pb2.Duration()
    made.FromTimedelta(timedelta(seconds=seconds))
    return made
