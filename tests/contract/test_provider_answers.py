"""What adapters make of vendors' answers."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from tests.contract.provider import Part, Subject, Text, asked, question, refusal, struct, subject_of, text_of
from tests.vendors.openai_server import OpenAICompatibleServer
from tests.vendors.vendor_server import Call, Fault, Reply

from agentshell import tokens
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

SEARCH, OPEN = pb.ToolDefinition(name="search"), pb.ToolDefinition(name="open")
CALLS = (Call("c1", "search", ('{"query": "a', 'b", "n": 3}')), Call("c2", "open", ()))
CALLED = [
    Part(tool_call=content_pb2.ToolCall(call_id="c1", name="search", arguments=struct({"query": "ab", "n": 3}))),
    Part(tool_call=content_pb2.ToolCall(call_id="c2", name="open", arguments=struct({}))),
]


async def test_a_streamed_answer_grows_to_the_whole_one(subject: Subject) -> None:
    *deltas, answer = await subject.stream(question())

    assert isinstance(answer, pb.GenerateResponse)
    texts = [delta.text for delta in deltas if isinstance(delta, pb.GenerationDelta) and delta.text]
    assert "".join(texts) == text_of(answer) != ""
    assert (answer.provider, answer.finish_reason) == (subject.name, pb.FINISH_REASON_STOP)
    assert answer.model.startswith(subject.adapter.default_model)
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    assert not answer.usage.estimated
    assert not answer.usage.HasField("cost")  # Adapters know no prices.


async def test_an_answer_that_comes_byte_by_byte_is_the_same(vendor: Subject) -> None:
    vendor.vendor.reply = Reply(texts=("Fünf ", "日本 ", "\U0001f389"), calls=CALLS, finish="tool_calls")
    whole = await vendor.generate(question(tools=[SEARCH, OPEN]))
    vendor.vendor.fault = Fault(is_dripped=True)

    assert await vendor.generate(question(tools=[SEARCH, OPEN])) == whole
    assert text_of(whole) == "Fünf 日本 \U0001f389"


async def test_a_connection_is_used_again_after_an_answer_and_not_after_half_of_one(vendor: Subject) -> None:
    for _ in range(3):
        await vendor.generate(question())
    assert vendor.vendor.connections == 1

    words = [b"Ready " in event for event in vendor.vendor.events(asked())]
    vendor.vendor.fault = Fault(stall_after=words.index(True) + 1)
    async with aclosing(vendor.adapter.stream(question(), vendor.adapter.default_model)) as items:
        await anext(items)
    vendor.vendor.fault = Fault()
    assert text_of(await vendor.generate(question())) == "Ready to serve."
    assert vendor.vendor.connections == 2


async def test_tool_calls_grow_piece_by_piece_and_end_whole(vendor: Subject) -> None:
    vendor.vendor.reply = Reply(texts=("Let me look.",), calls=CALLS, finish="tool_calls")

    *deltas, answer = await vendor.stream(question(tools=[SEARCH, OPEN]))

    assert isinstance(answer, pb.GenerateResponse)
    assert answer.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert list(answer.message.parts) == [Part(text=Text(text="Let me look.")), *CALLED]
    grown = [d.tool_call for d in deltas if isinstance(d, pb.GenerationDelta) and d.HasField("tool_call")]
    assert [(d.index, d.call_id, d.name) for d in grown if d.call_id] == [(0, "c1", "search"), (1, "c2", "open")]
    assert "".join(d.arguments_json for d in grown if d.index == 0) == '{"query": "ab", "n": 3}'


@pytest.mark.parametrize(("finish", "advice"), [("tool_calls", "another model"), ("length", "max_output_tokens")])
async def test_a_tool_call_that_is_not_json_is_refused(vendor: Subject, finish: str, advice: str) -> None:
    vendor.vendor.reply = Reply(calls=(Call("c1", "search", ('{"query": ',)),), finish=finish)

    error = await refusal(vendor.generate(question()))

    assert error.reason == error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID
    assert advice in error.message


async def test_why_an_answer_ended_is_told(vendor: Subject) -> None:
    for finish, expected in (("length", pb.FINISH_REASON_LENGTH), ("content_filter", pb.FINISH_REASON_CONTENT_FILTER)):
        vendor.vendor.reply = Reply(texts=(), finish=finish)

        answer = await vendor.generate(question())

        assert (finish, answer.finish_reason) == (finish, expected)
        assert list(answer.message.parts) == [Part(text=Text())]


async def test_usage_tells_cached_written_and_reasoning_tokens_apart(vendor: Subject) -> None:
    vendor.vendor.reply = Reply(
        input_tokens=1000, cached_tokens=300, cache_write_tokens=100, output_tokens=50, reasoning_tokens=20
    )

    *deltas, answer = await vendor.stream(question())

    assert isinstance(answer, pb.GenerateResponse)
    assert answer.usage == content_pb2.Usage(
        input_tokens=1000,
        output_tokens=50,
        cached_input_tokens=300,
        cache_write_tokens=0 if vendor.name == "gemini" else 100,  # Google does not report writes.
        reasoning_tokens=20,
    )
    said = [delta.usage for delta in deltas if isinstance(delta, pb.GenerationDelta) and delta.HasField("usage")]
    assert said[-1:] == [answer.usage]  # Sent before the end, so that it counts even if the end is lost.


async def test_tokens_are_counted_and_an_estimate_says_so(subject: Subject) -> None:
    estimate = tokens.estimate_generation(question())

    count = await subject.count(question())

    exact = pb.ABILITY_TOKEN_COUNT in subject.adapter.abilities
    expected = 1200 if exact and subject.server else estimate
    model = subject.adapter.default_model
    assert count == pb.CountTokensResponse(
        input_tokens=expected, estimated=not exact, provider=subject.name, model=model
    )


@pytest.mark.parametrize("name", ["openai", "openai_chat"])
async def test_a_refusal_of_openais_is_content_that_was_filtered(name: str) -> None:
    async with subject_of(name) as openai:
        openai.vendor.reply = Reply(texts=(), refusal=("I ", "cannot."))

        answer = await openai.generate(question())

        assert (text_of(answer), answer.finish_reason) == ("I cannot.", pb.FINISH_REASON_CONTENT_FILTER)


async def test_a_response_that_failed_has_told_its_usage() -> None:
    async with subject_of("openai") as openai:
        openai.vendor.reply = Reply(finish="failed")
        seen: list[pb.GenerationDelta] = []

        async def read() -> None:
            async for item in openai.adapter.stream(question(), openai.adapter.default_model):
                assert isinstance(item, list)
                seen.extend(item)

        error = await refusal(read())

        usage = content_pb2.Usage(input_tokens=1200, cached_input_tokens=200, output_tokens=300)
        *texts, used = seen
        assert "".join(delta.text for delta in texts) == "".join(openai.vendor.reply.texts)
        assert used == pb.GenerationDelta(usage=usage)
        assert error.reason == error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE


async def test_what_a_compatible_server_leaves_out_is_not_missed() -> None:
    async with subject_of("openai_compatible") as compatible:
        server = compatible.vendor
        assert isinstance(server, OpenAICompatibleServer)
        server.is_terse, server.has_usage = True, False
        server.reply = Reply(reasoning=("Hm.",), texts=("Let me look.",), calls=CALLS, finish="stop")

        answer = await compatible.generate(question())

        parts = [Part(reasoning=content_pb2.Reasoning(text="Hm.")), Part(text=Text(text="Let me look.")), *CALLED]
        named = list(answer.message.parts[2:])
        ids = [part.tool_call.call_id for part in named]
        assert len(set(ids)) == 2
        for part, called in zip(named, CALLED, strict=True):
            part.tool_call.call_id = called.tool_call.call_id
        assert answer == pb.GenerateResponse(
            message=content_pb2.Message(
                role=content_pb2.ROLE_ASSISTANT,
                parts=[
                    Part(reasoning=content_pb2.Reasoning(text="Hm.")),
                    Part(text=Text(text="Let me look.")),
                    *CALLED,
                ],
            ),
            finish_reason=pb.FINISH_REASON_TOOL_CALLS,
            usage=content_pb2.Usage(
                input_tokens=tokens.estimate_generation(question()),
                output_tokens=tokens.estimate_parts(parts),
                estimated=True,
            ),
            provider="openai_compatible",
            model="llama-4",
        )


async def test_a_server_that_refuses_to_be_asked_for_usage_is_asked_once_more_without() -> None:
    async with subject_of("openai_compatible") as compatible:
        server = compatible.vendor
        assert isinstance(server, OpenAICompatibleServer)
        server.is_terse, server.refuses_stream_options = True, True

        first = await compatible.generate(question())
        await compatible.generate(question())

        assert first.usage == content_pb2.Usage(input_tokens=1200, output_tokens=300)
        assert ["stream_options" in request.body for request in server.requests] == [True, False, False]


@pytest.mark.parametrize("name", ["openai", "openai_chat", "openai_compatible"])
async def test_texts_are_embedded_in_their_order(name: str) -> None:
    async with subject_of(name) as openai:
        response = await openai.adapter.embed(["a", "b", "c"], "text-embedding-3-small", 2)

        assert response == pb.EmbedResponse(
            embeddings=[pb.Embedding(values=[at, 0.5]) for at in range(3)],
            usage=content_pb2.Usage(input_tokens=21),
            provider=name,
            model="text-embedding-3-small",
        )
        (request,) = openai.vendor.requests
        assert (request.path, request.body) == (
            "/v1/embeddings",
            {
                "input": ["a", "b", "c"],
                "model": "text-embedding-3-small",
                "dimensions": 2,
                "encoding_format": "float",
            },
        )


async def test_openai_moderates_texts() -> None:
    async with subject_of("openai") as openai:
        response = await openai.adapter.moderate(["harm", "peace"], "")

        assert response == pb.ModerateResponse(
            verdicts=[
                pb.Verdict(flagged=True, scores={"violence": 0.75, "self-harm": 0.125}),
                pb.Verdict(flagged=False, scores={"violence": 0.25, "self-harm": 0.125}),
            ],
            provider="openai",
            model="omni-moderation-latest",
        )
