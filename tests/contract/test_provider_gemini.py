"""What only Gemini has, or does in its own way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf import struct_pb2
from tests.contract.provider import (
    ASSISTANT,
    KEY,
    TOOL,
    TOOL_CALL,
    USER,
    Part,
    Subject,
    question,
    refusal,
    said,
    struct,
    subject_of,
)
from tests.vendors.gemini_server import SIGNATURE
from tests.vendors.vendor_server import Call, Fault, Reply, sse

from agentshell import tokens
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

Choice = pb.ToolChoice
OPEN = pb.ToolDefinition(name="open")
SEARCH = Call("c1", "search", ("{}",))


@pytest.fixture
async def gemini() -> AsyncIterator[Subject]:
    async with subject_of("gemini") as found:
        yield found


async def _sent(gemini: Subject, generation: pb.Generation) -> dict[str, Any]:
    await gemini.generate(generation)
    return gemini.vendor.requests[-1].body


async def _answered(gemini: Subject, *chunks: dict[str, Any]) -> pb.GenerateResponse:
    gemini.vendor.fault = Fault(body=b"".join(map(sse, chunks)))
    return await gemini.generate(question())


async def test_the_proof_of_a_call_goes_back_with_it(gemini: Subject) -> None:
    gemini.vendor.reply = Reply(reasoning=("Let me ", "think."), texts=(), calls=(SEARCH,), finish="tool_calls")

    answer = await gemini.generate(question())
    body = await _sent(gemini, pb.Generation(messages=[*question().messages, answer.message]))

    assert [part.WhichOneof("kind") for part in answer.message.parts] == ["reasoning", "tool_call"]
    assert answer.message.parts[0].reasoning.text == "Let me think."
    call: dict[str, Any] = {"id": "c1", "name": "search", "args": {}}
    assert body["contents"][1] == {"role": "model", "parts": [{"functionCall": call, "thoughtSignature": SIGNATURE}]}


async def test_proof_that_comes_alone_goes_back_alone(gemini: Subject) -> None:
    gemini.vendor.reply = Reply(reasoning=("Let me think.",), texts=("Ready.",))

    answer = await gemini.generate(question())
    body = await _sent(gemini, pb.Generation(messages=[*question().messages, answer.message, said(USER, "Sure?")]))

    assert [part.WhichOneof("kind") for part in answer.message.parts] == ["reasoning", "text", "reasoning"]
    assert body["contents"][1]["parts"] == [{"text": "Ready."}, {"text": "", "thoughtSignature": SIGNATURE}]


async def test_the_proof_of_a_thought_goes_back_with_the_thought(gemini: Subject) -> None:
    thought = {"text": "Hm.", "thought": True, "thoughtSignature": SIGNATURE}
    parts = [thought, {"text": "Ready."}]

    answer = await _answered(gemini, {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]})
    gemini.vendor.fault = Fault()
    body = await _sent(gemini, pb.Generation(messages=[*question().messages, answer.message]))

    assert body["contents"][1]["parts"] == parts


async def test_calls_of_another_vendors_model_are_said_to_have_no_proof_where_one_is_needed(gemini: Subject) -> None:
    for model, proof in (("gemini-3.8-flash", "skip_thought_signature_validator"), ("gemini-2.5-pro", None)):
        messages = [*question().messages, said(ASSISTANT, TOOL_CALL, TOOL_CALL)]

        body = await _sent(gemini, pb.Generation(messages=messages, model=model))

        assert [part.get("thoughtSignature") for part in body["contents"][1]["parts"]] == [proof, None]


async def test_results_of_one_messages_calls_go_together(gemini: Subject) -> None:
    results = [
        content_pb2.ToolResult(call_id=call_id, output=struct_pb2.Value(string_value="ok")) for call_id in ("c1", "c9")
    ]
    messages = [said(ASSISTANT, TOOL_CALL), *(said(TOOL, Part(tool_result=result)) for result in results)]

    body = await _sent(gemini, pb.Generation(messages=messages))

    response = {"output": "ok"}
    assert body["contents"][1:] == [
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c1", "name": "search", "response": response}},
                {"functionResponse": {"id": "c9", "name": "", "response": response}},
            ],
        }
    ]


async def test_calls_without_an_id_get_one_each(gemini: Subject) -> None:
    parts = [{"functionCall": {"name": "open"}}, {"functionCall": {"name": "open", "args": {"n": 1}}}]

    answer = await _answered(gemini, {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]})

    first, second = (part.tool_call for part in answer.message.parts)
    assert answer.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert len({"", first.call_id, second.call_id}) == 3
    assert [first.arguments, second.arguments] == [struct({}), struct({"n": 1})]


CHOICES: list[tuple[pb.ToolChoice, dict[str, Any]]] = [
    (Choice(), {"mode": "AUTO"}),
    (Choice(mode=Choice.MODE_NONE), {"mode": "NONE"}),
    (Choice(mode=Choice.MODE_REQUIRED), {"mode": "ANY"}),
    (Choice(mode=Choice.MODE_REQUIRED, name="open"), {"mode": "ANY", "allowedFunctionNames": ["open"]}),
]


async def test_a_choice_of_tools_is_sent_as_google_has_it(gemini: Subject) -> None:
    for choice, expected in CHOICES:
        body = await _sent(gemini, question(tools=[OPEN], tool_choice=choice))

        assert body["toolConfig"] == {"functionCallingConfig": expected}


EFFORTS: list[tuple[str, pb.ReasoningEffort.ValueType, dict[str, Any]]] = [
    ("", pb.REASONING_EFFORT_UNSPECIFIED, {}),
    ("", pb.REASONING_EFFORT_NONE, {"thinkingBudget": 0}),
    ("", pb.REASONING_EFFORT_MINIMAL, {"thinkingLevel": "MINIMAL", "includeThoughts": True}),
    ("", pb.REASONING_EFFORT_HIGH, {"thinkingLevel": "HIGH", "includeThoughts": True}),
    ("gemini-2.5-flash", pb.REASONING_EFFORT_NONE, {"thinkingBudget": 0}),
    ("gemini-2.5-flash", pb.REASONING_EFFORT_HIGH, {"thinkingBudget": 24_576, "includeThoughts": True}),
]


async def test_how_long_it_thinks_is_sent_as_google_has_it(gemini: Subject) -> None:
    for model, effort, expected in EFFORTS:
        body = await _sent(gemini, question(model=model, parameters=pb.GenerationParameters(reasoning_effort=effort)))

        assert body.get("generationConfig", {}).get("thinkingConfig", {}) == expected


async def test_a_prompt_that_is_blocked_is_content_that_was_filtered(gemini: Subject) -> None:
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 12}}

    answer = await _answered(gemini, blocked)

    assert answer.finish_reason == pb.FINISH_REASON_CONTENT_FILTER
    assert answer.usage == content_pb2.Usage(input_tokens=12)


async def test_an_end_that_is_no_answer_is_an_error_in_googles_words(gemini: Subject) -> None:
    end = {"finishReason": "UNEXPECTED_TOOL_CALL", "finishMessage": f"No tool, {KEY}."}

    error = await refusal(_answered(gemini, {"candidates": [end]}))

    assert error.reason == error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID
    assert error.metadata == {
        "provider": "gemini",
        "model": gemini.adapter.default_model,
        "vendor_code": "UNEXPECTED_TOOL_CALL",
        "vendor_message": "No tool, [key].",
    }


async def test_how_long_to_wait_is_in_the_body(gemini: Subject) -> None:
    gemini.vendor.fault = Fault(status=429, retry_after="34.5")

    error = await refusal(gemini.generate(question()))

    assert (error.name, error.retry_delay) == ("PROVIDER_RATE_LIMITED", timedelta(seconds=34.5))


async def test_pictures_and_sound_are_counted_apart(gemini: Subject) -> None:
    usage = {
        "promptTokenCount": 100,
        "toolUsePromptTokenCount": 5,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 7,
        "promptTokensDetails": [{"modality": "IMAGE", "tokenCount": 60}, {"modality": "AUDIO", "tokenCount": 30}],
        "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 3}],
    }

    answer = await _answered(gemini, {"candidates": [{"finishReason": "STOP"}], "usageMetadata": usage})

    assert answer.usage == content_pb2.Usage(
        input_tokens=105,
        output_tokens=27,
        reasoning_tokens=7,
        image_input_tokens=60,
        audio_input_tokens=30,
        audio_output_tokens=3,
    )


async def test_texts_are_embedded_in_one_request(gemini: Subject) -> None:
    response = await gemini.adapter.embed(["a", "b", "c"], "", 2)

    assert response == pb.EmbedResponse(
        embeddings=[pb.Embedding(values=[at, 0.5]) for at in range(3)],
        usage=content_pb2.Usage(input_tokens=3 * tokens.estimate("a"), estimated=True),
        provider="gemini",
        model="gemini-embedding-2",
    )
    (request,) = gemini.vendor.requests
    path = "models/gemini-embedding-2"
    asked = [{"model": path, "content": {"parts": [{"text": text}]}, "outputDimensionality": 2} for text in "abc"]
    assert (request.path, request.body) == (f"/v1beta/{path}:batchEmbedContents", {"requests": asked})


async def test_all_that_is_read_is_counted(gemini: Subject) -> None:
    await gemini.count(question(tools=[OPEN]))

    (request,) = gemini.vendor.requests
    counted = request.body["generateContentRequest"]
    assert request.path == "/v1beta/models/gemini-3.8-flash:countTokens"
    assert (counted["model"], sorted(counted)) == ("models/gemini-3.8-flash", ["contents", "model", "tools"])


@pytest.mark.parametrize("model", ["../files", "m?key=x", "models/a/b", "m:countTokens", ""])
async def test_a_name_that_would_change_the_url_is_no_model(gemini: Subject, model: str) -> None:
    with pytest.raises(Exception, match="has no model") as caught:
        await anext(gemini.adapter.stream(question(), model))

    assert getattr(caught.value, "reason", None) == error_pb2.ERROR_REASON_MODEL_NOT_FOUND
    assert gemini.vendor.requests == []
